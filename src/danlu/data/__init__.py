"""Raw rows in, training data out: sources read, operators clean and label, split and prepare write."""
