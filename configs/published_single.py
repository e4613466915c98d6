"""LongShot's published values for one trajectory: navigator and adapters on a frozen Llama-3-8B-Instruct, on GSM8K.

What it is for: the method on one A100 40 GB. The backbone is frozen and stored in bfloat16 (16 GB). PPO, on rewards
alone, trains the navigator (reasoning space of 256 dimensions, memory bank, stop and value heads) and low-rank adapters
of every matrix of the backbone (42 million parameters).

What it should reach: not measured yet.

Cost: computed, not measured. By XLA's compiler for GPUs a run needs 26 of the 36 GB that one A100 40 GB allows (a tenth stays free):
16.2 GB of parameters, 4.6 GB of keys and values of 64 prompts, 4.1 GB of activations in a rollout. By the roofline an iteration
takes at least 25 s there and the run at least 1.6 hours:

    python scripts/plan.py --config configs/published_single.py --devices 1 --accelerator a100-40g

Values are LongShot's published ones for one trajectory. Departures and their reasons:

- Adapters instead of the whole backbone, which the published run trained at 5e-6 and which does not fit in 40 GB.
  Adapters of all matrices and alpha 16 are QLoRA's (arXiv:2305.14314), which found that the rank then matters little:
  16 instead of its 64. Their learning rate is ten times the backbone's, as for LoRA in general (Schulman et al. 2025,
  "LoRA Without Regret"). Neither was tuned here.
- Every answer is decoded from the thoughts, and PPO has ratio and clip; the published script had neither.
- Rollouts of 64 questions instead of a buffer of 256: keys and values of 256 prompts do not fit.
- Numbers of thoughts are forced to 3, 4 or 5 for the first quarter of the run, not for two epochs, which is the whole
  run: the stop head would never decide.
- Stop decisions have the published temperatures, 1.5 to 0.5. Answer tokens start at 1.0: at 1.5 the tail of 128,256
  tokens takes a large part of the probability.
- The only marker stands before the answer, and an instruction asks for the number alone: rewards can only reinforce
  answers that are sampled now and then.
- No dropout: rescored log-probs would differ from the sampled ones.
- KL to the initial policy, 0.02; the published script had none. Policy and reference share the backbone.

`--config.ppo.trainable=navigator` trains only the navigator; `--config.model.weight_dtype=int8` halves the backbone.

    python scripts/train.py --config configs/published_single.py
    python scripts/train.py --config configs/published_single.py --config.model.source=/models/Llama-3-8B-Instruct \
        --config.data.train=gsm8k/train.jsonl --config.data.test=gsm8k/test.jsonl
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("ppo",)
    config.markers = "answer"  # no marker before the thoughts, which the pretrained model does not know

    config.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"  # or any local directory
    config.model.compute_dtype = "bfloat16"
    config.model.weight_dtype = "bfloat16"
    config.model.remat = True
    config.model.lora.rank = 16
    config.model.lora.alpha = 16.0

    config.data.train = "openai/gsm8k:main:train"  # or any local file
    config.data.test = "openai/gsm8k:main:test"
    config.data.tokenizer = "model"
    config.data.instruction = "Answer with the number alone."  # otherwise it explains, and no answer is correct
    config.data.prompt_length = 512
    config.data.length_bucket = 128
    config.data.answer_length = 32

    config.thoughts.feedback = "navigator"
    config.thoughts.normalised = True  # decoded thoughts get the rms of token embeddings
    config.thoughts.reasoning_dim = 256
    config.thoughts.memory_top = 3

    ppo = config.ppo
    ppo.trainable = "lora"
    ppo.gradient = "score"
    ppo.log_prob_scaling = "scaled"  # summed over 256 dimensions, most ratios would leave the clip range
    ppo.questions = 64
    ppo.num_trajectories = 1
    ppo.iterations = 234  # 2 epochs of all 7,473 questions, 2.1 of the 6,973 that are not for validation
    ppo.epochs = 4
    ppo.minibatches = 2  # of 32 questions: the published effective batch
    ppo.micro_batches = 8  # of 4 questions: the published batch
    ppo.baseline = "critic"  # the memory bank needs values
    ppo.clip = 0.2
    ppo.gamma = 0.99
    ppo.gae_lambda = 0.95
    ppo.value_coefficient = 0.5
    ppo.entropy_coefficient = 0.01
    ppo.thought_std = (0.2, 0.2)  # relative to the rms of noise-free thoughts
    ppo.stop_temperature = (1.5, 0.5)
    ppo.token_temperature = (1.0, 0.5)
    ppo.min_thoughts = 2
    ppo.max_thoughts = 6
    ppo.target_thoughts = (3, 4, 5)
    ppo.target_iterations = 58
    ppo.memory_slots = 500
    rewards = ppo.rewards  # the published values
    rewards.wrong = -0.3
    rewards.no_thought = -1.5
    rewards.on_target = 0.5
    rewards.near_target = 0.2
    rewards.target_thoughts = 4
    rewards.excess_thought = -0.3
    rewards.excess_above = 6
    rewards.natural_stop = 0.3
    rewards.natural_stop_range = (2, 5)

    optimizer = ppo.optimizer
    optimizer.learning_rate = 1.4e-4  # adapters: 10 x the published 5e-6 at batch 4, scaled with the root of the batch
    optimizer.navigator_learning_rate = 2.8e-5  # 1e-5 at batch 4, scaled with the root of the batch
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 50
    optimizer.final_learning_rate = 0.035  # of the peak: 1e-6 for the navigator
    optimizer.weight_decay = 0.01
    optimizer.navigator_weight_decay = 0.001
    optimizer.b2 = 0.95
    optimizer.clip_norm = 0.5

    config.evaluation.every_iterations = 20
    config.evaluation.questions = 128
    config.evaluation.batch_size = 64
    config.checkpoint.every = 20
    return config
