"""Data: rows from files and their validation, chat templates, token ids, batching, packing."""
