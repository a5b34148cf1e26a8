"""Adapters to other harnesses, one file each, imported by its harness alone: each needs the harness to be installed."""
