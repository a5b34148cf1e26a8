"""The command that runs and scores benchmarks."""
