from tests.tiny_bundles import images, micro, no_traces, weights

__all__ = ["images", "micro", "no_traces", "weights"]
