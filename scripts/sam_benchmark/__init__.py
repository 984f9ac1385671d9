"""The parts of ``scripts/benchmark_sam.py``: what is measured, how, and how it is written down."""
