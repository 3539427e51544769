"""Files that are written whole or not at all, claimed by one process, and kept open while they are read."""
