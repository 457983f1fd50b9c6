"""What a problem is before an engine has it: its inputs, its events, its samples."""
