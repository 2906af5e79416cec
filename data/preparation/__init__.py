"""From a corpus to lines of shards, in tasks: bounded memory, and a kill costs only their time."""
