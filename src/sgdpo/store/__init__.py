"""Keep things on disk: whole files, JSON lines, hashes, folders built once. Imports nothing heavy."""

from sgdpo.store.files import (
    DamagedError,
    JsonLines,
    cut_jsonl,
    finite,
    line,
    open_to_others,
    read_json,
    read_jsonl,
    sync,
    write_json,
    write_jsonl,
    write_whole,
)
from sgdpo.store.hashes import (
    hash_buffers,
    hash_file,
    hash_folder,
    hash_json,
    hash_number,
    hash_text,
    hash_tokenizer,
)
from sgdpo.store.life import age, beat
from sgdpo.store.once import Lock, build_once, held, remove
from sgdpo.store.sealed import MANIFEST, read_seal, seal, what_is_wrong
