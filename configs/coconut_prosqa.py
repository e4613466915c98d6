"""COCONUT's curriculum on ProsQA (Hao et al. 2024, arXiv:2412.06769), with a Llama from scratch.

What it is for: the supervised curriculum with its published options on the task where latent thoughts help most: one
thought per step, five epochs per stage, up to six steps. Stage 7 replaces all steps and is repeated three times, for
the rest of the published 50 epochs. Problems are generated, calibrated to the published files (17,886, the size of the
training file); a file in COCONUT's JSON form can be used instead.

What it should reach: not measured yet. Published for GPT-2: 97.0 %. A model with pause tokens reaches 96.6 %, and
single features of the published test file score up to 74.1 %, so this task alone is no evidence that thoughts carry
information.

Cost: not measured yet. 7,000 updates of 10 million parameters: a GPU, or a day of CPU.

Departures: a Llama of 6 layers and width 384 from scratch (published: pretrained GPT-2), with its own learning rate;
generated training problems; stage 0 is part of the run.

    python scripts/train.py --config configs/coconut_prosqa.py --config.data.test=prosqa/prosqa_valid.json
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("curriculum",)

    config.model.hidden_size = 384
    config.model.intermediate_size = 1024
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 6

    config.data.train = "prosqa"
    config.data.test = "prosqa"
    config.data.generated_train = 17_886
    config.data.generated_test = 500
    config.data.tokenizer = "bpe"
    config.data.bpe_vocabulary = 512  # the problems have little more than a hundred different words
    config.data.prompt_length = 512
    config.data.length_bucket = 128
    config.data.answer_length = 96

    curriculum = config.curriculum
    curriculum.mode = "coconut"
    curriculum.stages = (0, 1, 2, 3, 4, 5, 6, 7, 7, 7)  # 10 x 5 epochs
    curriculum.c_thought = 1
    curriculum.epochs_per_stage = 5
    curriculum.max_latent_stage = 6
    curriculum.pad_latent_to_max = True
    curriculum.reset_optimizer = True
    curriculum.batch_size = 128
    curriculum.micro_batch_size = 32
    curriculum.optimizer.learning_rate = 3e-4  # published: 1e-4, for a pretrained model
    curriculum.optimizer.navigator_learning_rate = 3e-4
    curriculum.optimizer.weight_decay = 0.01
    curriculum.optimizer.warmup_steps = 100

    config.evaluation.every = 200
    config.evaluation.questions = 300
    config.evaluation.batch_size = 100
    config.checkpoint.every = 200
    return config
