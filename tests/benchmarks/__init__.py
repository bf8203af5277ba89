"""What the package costs and how fast it is: see ``python -m tests.benchmarks --help``."""
