"""Where everything made is kept: content-addressed artifacts, the stages that make them, the runs that made them."""
