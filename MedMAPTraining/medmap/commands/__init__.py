"""What the commands do, without printing: files in, files out, all or nothing."""
