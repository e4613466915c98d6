"""LongShot's published values for five trajectories: all parameters of Llama-3-8B-Instruct, on GSM8K.

What it is for: the full method on one node of eight GPUs. Five trajectories of up to six thoughts per question, a
shared memory bank, PPO on navigator and backbone together, parameters and moments sharded over the eight devices.

What it should reach: not measured yet. (This project's ancestor states 70.2 % after two epochs, but its script decodes
the evaluated answers without thoughts, so that figure is not evidence for latent reasoning.)

Cost: computed, not measured. Parameters, gradients, two moments and the reference policy in float32 are 160 GB, 20.1 GB
on each of eight devices. By XLA's compiler for GPUs a run needs 46 of the 72 GB that an H100 80 GB allows (a tenth stays free), of which 16
are weights that an update has gathered. An iteration is estimated at 2.7 s on 8 x H100 (docs/performance.md):

    python scripts/plan.py --config configs/published_multi.py --devices 8 --accelerator h100-80g

Values are LongShot's published ones for several trajectories. Departures and their reasons:

- Ratio and clip per action; the published script used the reward as a constant factor.
- Rollouts of 64 questions x 5 trajectories in minibatches of 32 questions, the published effective batch, instead of a
  buffer of 256.
- Numbers of thoughts are forced to 3, 4 or 5 for the first quarter of the run, not for two epochs, which is the whole
  run.
- Always five trajectories instead of two to five: the number of trajectories is not an action here.
- Stop decisions have the published temperatures, 1.5 to 0.5. Answer tokens start at 1.0: at 1.5 the tail of 128,256
  tokens takes a large part of the probability.
- The only marker stands before the answer, and an instruction asks for the number alone: rewards can only reinforce
  answers that are sampled now and then.
- No dropout: rescored log-probs would differ from the sampled ones.
- KL to the initial policy, 0.02; the published script had none.

    python scripts/train.py --config configs/published_multi.py
    python scripts/train.py --config configs/published_multi.py --config.model.source=/models/Llama-3-8B-Instruct \
        --config.data.train=gsm8k/train.jsonl --config.data.test=gsm8k/test.jsonl --config.mesh.fsdp=4
"""

from longshot_jax.config import default_config, extend


def get_config():
    config = extend("published_single.py")
    config.mesh.fsdp = 8
    config.mesh.gather = "model"  # 16 GB on each device for a third less communication
    config.model.weight_dtype = "float32"
    config.model.remat_keeps = "products"  # 3 GB more, and a sixth less arithmetic

    ppo = config.ppo
    ppo.trainable = "all"
    ppo.num_trajectories = 5
    ppo.micro_batches = 1
    ppo.rewards = default_config().ppo.rewards  # without the terms for one trajectory
    ppo.rewards.wrong = -1.0  # the published values
    ppo.rewards.success_per_thought = 0.01
    ppo.rewards.success_per_trajectory = 0.01

    optimizer = ppo.optimizer
    optimizer.learning_rate = 1.4e-5  # 5e-6 at batch 4, growing with the root of the batch
    optimizer.final_learning_rate = 0.1  # of the peak: 1.4e-6 for the backbone
    return config
