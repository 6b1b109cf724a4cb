"""Talk to a trained model in the terminal: several turns, in the words of its own chat template, as it writes them."""

import sys

import torch
from transformers import GenerationConfig, TextStreamer

from sgdpo.config.schema import ModelConfig
from sgdpo.data.conversation import cut_prompt, prompt_ids, stop_ids
from sgdpo.data.rows import RefusedError
from sgdpo.models.decode import plain_settings
from sgdpo.models.device import device_of
from sgdpo.models.load import load_model, load_tokenizer

HELP = "/reset forgets what was said, /system TEXT begins anew with a system turn, /quit or Ctrl-D ends"


class Chat:
    """Hold a conversation with one model."""

    def __init__(self, model: ModelConfig, device: str, temperature: float, longest: int, seed: int):
        place = device_of(device)
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, seed=0).to(place).eval()
        self.stops, self.longest, self.temperature = stop_ids(self.tokenizer), longest, temperature
        self.turns: list[dict[str, str]] = []
        torch.manual_seed(seed)

    def hear(self, line: str) -> bool:
        """Take a line of the user's; return whether it wants an answer."""
        word, _, rest = line.partition(" ")
        if word in ("/reset", "/system"):
            self.turns = [{"role": "system", "content": rest}] if word == "/system" and rest else []
            print("(a new conversation)", flush=True)
        elif word == "/help":
            print(HELP, flush=True)
        elif line.strip():
            self.turns.append({"role": "user", "content": line})
            return True
        return False

    @torch.inference_mode()
    def answer(self) -> str:
        """Print the answer to the turns so far as it is written; it becomes the next turn."""
        ids = prompt_ids(self.tokenizer, self.turns)
        context = getattr(self.model.config, "max_position_embeddings", None) or len(ids) + self.longest
        ids = cut_prompt(ids, max(context - self.longest, context // 2), self.tokenizer.bos_token_id)
        sampling = (
            # 0: from all tokens, where transformers would take the likeliest 50.
            {"do_sample": True, "temperature": self.temperature, "top_k": 0}
            if self.temperature
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=min(self.longest, context - len(ids)), eos_token_id=self.stops,
            pad_token_id=self.stops[0], **sampling,
        )  # fmt: skip
        input_ids_BN = torch.tensor([ids], device=self.model.device)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with plain_settings(self.model):
            out_BN = self.model.generate(
                input_ids_BN,
                attention_mask=torch.ones_like(input_ids_BN),
                generation_config=config,
                streamer=streamer,
            )
        new = out_BN[0, len(ids) :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        self.turns.append({"role": "assistant", "content": text})
        return text


def talk(chat: Chat) -> None:
    """Answer line by line until the input ends; a prompt is shown only to a person."""
    shown = sys.stdin.isatty()
    if shown:
        print(HELP, flush=True)
    while True:
        try:
            # Bytes of a pipe that are no character come as half ones, which no tokenizer takes.
            line = input("> " if shown else "").encode("utf-8", "replace").decode()
        except EOFError:
            return
        if line.strip() == "/quit":
            return
        try:
            if chat.hear(line):
                chat.answer()
        except RefusedError as error:  # a system turn, for instance: that is no reason to end the talk
            chat.turns = []
            print(f"({error}: a new conversation)", flush=True)
