"""gradtf-fl: federated LLM fine-tuning from TinyLM updates, under DP-SGD and secure aggregation."""

__version__ = "0.1.0"
