"""A stage shared by a team of devices (tensor parallelism): its graph rewritten, with the messages between them."""

from autopart.sharding.collectives import Team, draw_alike
from autopart.sharding.parted import Parted
from autopart.sharding.rewriting import reads_rows
from autopart.sharding.shards import Shard
from autopart.sharding.sharing import Shares, sharded_weights, share_layers

__all__ = ["Parted", "Shard", "Shares", "Team", "draw_alike", "reads_rows", "sharded_weights", "share_layers"]
