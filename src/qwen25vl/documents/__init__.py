"""Jobs over many documents: each page is asked once, its answer written down once."""
