"""What is kept of calls and cameras: files that are written, hashed, held, pruned and handed out."""
