"""Flags and launchers of runs on two processes."""

DDP = ("--config", "conf/strategy/ddp.yaml", "--trainer.devices", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "transformer2")
# Small enough a threshold that the matrices of a small model are sharded, and z (48 numbers) stays whole.
SHARDED = ("--trainer.strategy.init_args.whole_below", "1000", "--trainer.callbacks", "[shards.Shards]")
