"""What a run will cost, before it starts: time, disk and memory."""
