"""From files of cases to token ids: rows and their checks, chat templates, order, packing."""
