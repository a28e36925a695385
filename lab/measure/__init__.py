"""Tables: how good drawings and retrieval are, beside the real pictures and chance."""
