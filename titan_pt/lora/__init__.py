"""LoRA: adapters of low rank beside frozen weights, for fine-tuning and reinforcement learning."""
