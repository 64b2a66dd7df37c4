"""Rollout engines: `generate(policy, prompts, sampling, seed) -> Rollouts`."""
