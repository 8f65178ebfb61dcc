"""Chat templates as they were published with their models, and the same conversations written by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Piece = tuple[str, bool]
"""Text, and whether it is the assistant's own."""
Turns = Sequence[tuple[str, str]]
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
SPECIAL = [
    *("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
]


@dataclass(frozen=True)
class Case:
    """A template, and how its conversations look."""

    template: str
    by_hand: Callable[[Turns], list[Piece]]
    system: bool = True
    """Whether it takes a system turn."""
    special: bool = True
    """Whether its signs are tokens of their own."""


def chatml(turns: Turns) -> list[Piece]:
    start = [] if turns[0][0] == "system" else [("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False)]
    return start + [
        piece
        for role, said in turns
        for piece in ((f"<|im_start|>{role}\n", False), (f"{said}<|im_end|>", role == "assistant"), ("\n", False))
    ]


def llama2(turns: Turns) -> list[Piece]:
    system = f"<<SYS>>\n{turns[0][1]}\n<</SYS>>\n\n" if turns[0][0] == "system" else ""
    pieces: list[Piece] = []
    for role, said in turns[bool(system) :]:
        if role == "user":
            pieces.append((f"<s>[INST] {system}{said.strip()} [/INST]", False))
            system = ""
        else:
            pieces.append((f" {said.strip()} </s>", True))
    return pieces


def llama3(turns: Turns) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for role, said in turns:
        pieces += [
            (f"<|start_header_id|>{role}<|end_header_id|>\n\n", False),
            (f"{said.strip()}<|eot_id|>", role == "assistant"),
        ]
    return pieces


def mistral(turns: Turns) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for role, said in turns:
        pieces.append((f"[INST] {said} [/INST]", False) if role == "user" else (f"{said}</s>", True))
    return pieces


def gemma(turns: Turns) -> list[Piece]:
    pieces: list[Piece] = [("<s>", False)]
    for role, said in turns:
        name = "model" if role == "assistant" else role
        pieces += [(f"<start_of_turn>{name}\n", False), (f"{said.strip()}<end_of_turn>", role == "assistant"), ("\n", False)]
    return pieces


def bars(end: str, after: str = "\n") -> Callable[[Turns], list[Piece]]:
    def by_hand(turns: Turns) -> list[Piece]:
        pieces = []
        for role, said in turns:
            pieces += [(f"<|{role}|>\n", False), (f"{said}{end}", role == "assistant"), (after, False)]
        return pieces

    return by_hand


def phi3(turns: Turns) -> list[Piece]:
    return [*bars("<|end|>")(turns), ("</s>", False)]


def names(first: str, user: str, assistant: str, after: str) -> Callable[[Turns], list[Piece]]:
    """Sides by name in plain words; `after` stands behind what is not the assistant's."""

    def by_hand(turns: Turns) -> list[Piece]:
        pieces: list[Piece] = [(first, False)]
        for role, said in turns:
            if role == "assistant":
                pieces += [(f"{assistant}:", False), (f" {said}</s>", True)]
            else:
                pieces.append((f"{user}: {said}{after}" if role == "user" else f"{said}{after}", False))
        return pieces

    return by_hand


def command(turns: Turns) -> list[Piece]:
    names = {"user": "USER", "assistant": "CHATBOT", "system": "SYSTEM"}
    pieces: list[Piece] = [("<s>", False)]
    for role, said in turns:
        head = f"<|START_OF_TURN_TOKEN|><|{names[role]}_TOKEN|>"
        pieces += [(head, False), (f"{said.strip()}<|END_OF_TURN_TOKEN|>", role == "assistant")]
    return pieces


def thinking(turns: Turns) -> list[Piece]:
    pieces: list[Piece] = []
    for i, (role, said) in enumerate(turns):
        own = role == "assistant"
        empty = "<think>\n\n</think>\n\n" if own and i == len(turns) - 1 else ""
        pieces += [(f"<|im_start|>{role}\n", False), (f"{empty}{said}<|im_end|>", own), ("\n", False)]
    return pieces


def plain(turns: Turns) -> list[Piece]:
    pieces: list[Piece] = []
    for role, said in turns:
        pieces += [(f"{said}</s>", True)] if role == "assistant" else [(f"{said}\n", False)]
    return pieces


LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + ALTERNATE + "{% if loop.index0 == 0 and"
    " system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CASES = {
    "chatml": Case(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        chatml,
    ),
    "llama2": Case(LLAMA_2, llama2),
    "llama3": Case(
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        llama3,
    ),
    "mistral": Case(
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}",
        mistral,
        system=False,
    ),
    "gemma": Case(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
        "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        gemma,
        system=False,
    ),
    "zephyr": Case(ZEPHYR, bars("</s>")),
    "phi3": Case(
        "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        phi3,
    ),
    "vicuna": Case(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        names("", "USER", "ASSISTANT", " "),
        special=False,
    ),
    "deepseek": Case(
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        names("<s>", "User", "Assistant", "\n\n"),
        special=False,
    ),
    "command": Case(
        "{{ bos_token }}{% for message in messages %}"
        "{% set name = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[message['role']] %}"
        "{{ '<|START_OF_TURN_TOKEN|><|' + name + '_TOKEN|>' + message['content'].strip() + "
        "'<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        command,
    ),
    "tulu": Case(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + "
        "eos_token + '\n' }}{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        lambda turns: [
            piece
            for role, said in turns
            for piece in (
                (f"<|{role}|>\n", False),
                (said + ("</s>" if role == "assistant" else ""), role == "assistant"),
                ("\n", False),
            )
        ],
    ),
    "thinking": Case(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        thinking,
    ),
    "plain": Case(
        "{% for message in messages %}{{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}",
        plain,
    ),
}
TALKS: list[Turns] = [
    [("user", "Hello there"), ("assistant", "Hi, how are you?")],
    [("user", "Hello"), ("assistant", " Hello, how are you? "), ("user", "Fine."), ("assistant", "\nGood\n\n")],
    [("user", "ASSISTANT: say Assistant: Hi"), ("assistant", "user Hello </s"), ("user", "é漢字 🙂"), ("assistant", "🙂 é")],
    [("system", "Be good."), ("user", "How are you?"), ("assistant", "How are you?"), ("user", "Hi"), ("assistant", "Hi")],
]


TEXT = [
    "Hello there Hi, how are you? Fine. Good user assistant ASSISTANT: Hello USER: Hi User: Assistant: Hello Hi [INST] "
] * 9


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words begin with their space, as GPT-2's and Llama-3's do."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    return _with_signs(made)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's, Mistral's and Gemma's: spaces are letters, one is put before each stretch, and rare letters are bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no piece has a space in its middle
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    signs = [*SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=signs, show_progress=False))
    return _with_signs(made)


def _with_signs(made: Tokenizer) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
