"""What is wrong with the nodes and the network between them, found out in a minute before a run of days."""
