"""LongShot's published values for five trajectories: all parameters of Llama-3-8B-Instruct, on GSM8K.

What it is for: the full method on one node of eight GPUs. Five trajectories of up to six thoughts per question, a
shared memory bank, PPO on navigator and backbone together, parameters and moments sharded over the eight devices.

What it should reach: not measured yet. (This project's ancestor states 70.2 % after two epochs, but its script decodes
the evaluated answers without thoughts, so that figure is not evidence for latent reasoning.)

Cost: computed, not measured. Parameters, gradients, two moments and the reference policy in float32 are 160 GB, 20.1 GB
on each of eight devices. A plan needs 27.5 GB per device of the 72 that an H100 80 GB allows (a tenth stays free), so 8
x A100 40 GB also suffice. By the roofline an iteration takes at least 1.8 s on 8 x H100, without communication; estimates
with it, from the programs that XLA compiles for these cards, are in docs/performance.md:

    python scripts/plan.py --config configs/published_multi.py --devices 8 --accelerator h100-80g

Values are LongShot's published ones for several trajectories. Departures and their reasons:

- Ratio and clip per action; the published script used the reward as a constant factor.
- Rollouts of 64 questions x 5 trajectories in minibatches of 16 questions, instead of a buffer of 256.
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

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("ppo",)
    config.markers = "answer"  # no marker before the thoughts, which the pretrained model does not know
    config.mesh.fsdp = 8

    config.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"  # or any local directory
    config.model.compute_dtype = "bfloat16"
    config.model.remat = True

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
    ppo.trainable = "all"
    ppo.gradient = "score"
    ppo.log_prob_scaling = "scaled"  # summed over 256 dimensions, most ratios would leave the clip range
    ppo.questions = 64
    ppo.num_trajectories = 5
    ppo.iterations = 234  # 2 epochs of all 7,473 questions, 2.1 of the 6,973 that are not for validation
    ppo.epochs = 4
    ppo.minibatches = 4  # of 16 questions
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
    ppo.rewards.wrong = -1.0  # the published values
    ppo.rewards.success_per_thought = 0.01
    ppo.rewards.success_per_trajectory = 0.01

    optimizer = ppo.optimizer
    optimizer.learning_rate = 1e-5  # 5e-6 at batch 4, growing with the root of the batch
    optimizer.navigator_learning_rate = 2e-5  # 1e-5 at batch 4
    optimizer.schedule = "cosine"
    optimizer.warmup_steps = 50
    optimizer.final_learning_rate = 0.1  # of the peak: 1e-6 for the backbone
    optimizer.weight_decay = 0.01
    optimizer.navigator_weight_decay = 0.001
    optimizer.b2 = 0.95
    optimizer.clip_norm = 0.5

    config.evaluation.every_iterations = 20
    config.evaluation.questions = 128
    config.evaluation.batch_size = 64
    config.checkpoint.every = 20
    return config
