"""The label factory: token shards through encoder gangs into label shards."""
