"""Benchmarks: what one is (`task`), those that there are (`benchmarks`), how they ask (`prompts`) and count (`rules`,
`scores`), and adapters to other harnesses (`plugins`)."""
