"""Tables of parity cases, one file a kind of model. Each has ``CASES``: name → Case."""
