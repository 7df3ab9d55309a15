"""Where rows come from: files here, files inside pinned packages."""
