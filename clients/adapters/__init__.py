"""LLM adapters at an organization: kept by round, with what the provider signed, and exported."""
