"""`engine=megatron`: the decoder built from Megatron-core's layers, run by its schedules."""
