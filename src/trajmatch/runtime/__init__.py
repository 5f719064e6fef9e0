"""What a computation asks of the machine: processes, threads, memory, compiler, batch sizes."""
