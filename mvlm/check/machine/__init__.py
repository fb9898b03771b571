"""What of a machine's environment works, found out by trying it: each probe in a process and a time of its own."""
