"""SmolLM2-135M-Instruct that reasons in thoughts: word problems of one to three operations, on a laptop.

What it is for: the whole path of a pretrained Llama in one resumable run, and the starting point of the other recipes.

- `text`: equations in text. A model that gets steps wrong in writing has nothing to put into thoughts.
- `curriculum`: from the first step on, steps become two thoughts each. Each thought must explain its step
  (`guidance.explanation`), and once all steps are thoughts, the answer to half of the problems, falling to none, sees the
  thoughts alone (`question_hidden`): otherwise short problems are answered from the question, and thoughts stay unread.
- `ppo`: rewards alone, with the gradient through the thoughts (`pathwise`), which needs few trajectories.

What it reaches: this run as a whole was not made yet. Parts were (docs/results.md, with its settings of text): text alone answers
46 % of 96 held-out questions after 2,880 sequences, and 71 % of the questions with one operation. A curriculum without `question_hidden` (744 and 1,120
sequences) left its thoughts unread: 36 % of 150 answers right, and as many with thoughts zeroed, so look at the controls of
eval.py before any accuracy.

Cost: about 40,000 sequences. Two CPU cores do 1.2 to 1.9 a second in the text phase, so count on ten hours; in batches of 8 it
takes less than 8 GB. `export GLIBC_TUNABLES=glibc.malloc.hugetlb=1` on Linux saves a third of the time.

    python scripts/train.py --config configs/smollm2_stories.py --workdir runs/stories
    python scripts/train.py --config configs/smollm2_stories.py --config.model.source=/models/SmolLM2-135M-Instruct
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("text", "curriculum", "ppo")

    config.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"  # or any local directory

    config.data.train = "stories"
    config.data.test = "stories"
    config.data.operations = (1, 2, 3)
    config.data.tokenizer = "model"
    config.data.chat_template = "minimal"  # its own adds 31 tokens to every question
    config.data.prompt_length = 96
    config.data.length_bucket = 32
    config.data.batch_shapes = 4  # one compilation each
    config.data.answer_length = 48

    text = config.text
    text.batch_size = 8
    text.max_steps = 1000
    text.optimizer.learning_rate = 2e-4
    text.optimizer.warmup_steps = 20

    curriculum = config.curriculum
    curriculum.stages = (1, 2, 3)
    curriculum.max_latent_stage = 3
    curriculum.c_thought = 2  # as COCONUT on GSM8K
    curriculum.uniform_prob = 0.1  # of other stages, so that none is forgotten
    curriculum.batch_size = 8
    curriculum.max_steps_per_stage = 1250  # 10,000 sequences
    curriculum.reset_optimizer = True
    curriculum.question_hidden = 0.5
    curriculum.question_hidden_updates = 2500  # the last stage sees the question
    curriculum.guidance.explanation = 1.0
    curriculum.optimizer.learning_rate = 1e-4
    curriculum.optimizer.navigator_learning_rate = 2e-4
    curriculum.optimizer.warmup_steps = 50  # of every stage

    ppo = config.ppo
    ppo.iterations = 200
    ppo.questions = 8
    ppo.num_trajectories = 4
    ppo.epochs = 1
    ppo.minibatches = 1
    ppo.micro_batches = 2
    ppo.gradient = "pathwise"
    ppo.thought_std = (0.1, 0.1)  # relative to the rms of noise-free thoughts
    ppo.baseline = "leave_one_out"
    ppo.whiten = False
    ppo.gae_lambda = 1.0
    ppo.entropy_coefficient = 0.0
    ppo.kl_coefficient = 0.0  # no second copy of the weights
    ppo.max_thoughts = 6
    ppo.answer_length = 12
    ppo.optimizer.learning_rate = 1e-5
    ppo.optimizer.navigator_learning_rate = 2e-4
    ppo.optimizer.schedule = "linear"
    ppo.optimizer.warmup_steps = 10

    config.evaluation.every = 500
    config.evaluation.every_iterations = 50
    config.evaluation.questions = 192
    config.evaluation.batch_size = 48
    config.checkpoint.every = 250
    config.checkpoint.keep_last = 1  # 1.6 GB each
    return config
