"""Documents to token shards, in units of work that any number of processes can share."""
