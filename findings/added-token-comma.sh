#!/usr/bin/env bash
# A comma after an added token is two tokens
#
# Guess:   putting an added token <C> before a comma adds one id and leaves the others.
# Happens: with Metaspace as it comes (the SentencePiece style, prepend_scheme "always")
#          and with ByteLevel as it comes (add_prefix_space), the text after an added token
#          is treated as a new beginning and gets a space: "<C>," is <C>, space, comma.
#          prepend_scheme "first" or add_prefix_space=False leave the comma alone.
# Matters: learned tokens put into the *text* change the words around them; insert ids
#          (or vectors) after tokenising. encode(",") also has two ids there, so the
#          comma's id is the last one.
# Seen on 2026-11-29 with tokenizers 0.23.3:
#   Metaspace(): ▁ 1 , ▁ 2 , ▁ 3  ->  ▁ 1 <C> ▁ , ▁ 2 <C> ▁ , ▁ 3  (2 more than the two put in); a lone comma: 2 id(s)
#   Metaspace(first): ▁ 1 , ▁ 2 , ▁ 3  ->  ▁ 1 <C> , ▁ 2 <C> , ▁ 3  (0 more than the two put in); a lone comma: 2 id(s)
#   ByteLevel(): Ġ 1 , Ġ 2 , Ġ 3  ->  Ġ 1 <C> Ġ , Ġ 2 <C> Ġ , Ġ 3  (2 more than the two put in); a lone comma: 2 id(s)
#   ByteLevel(no space): 1 , Ġ 2 , Ġ 3  ->  1 <C> , Ġ 2 <C> , Ġ 3  (0 more than the two put in); a lone comma: 1 id(s)
set -euo pipefail
d=$(mktemp -d); trap 'rm -rf "$d"' EXIT
python3 -m venv "$d/v"; pip="$d/v/bin/pip install -q --no-compile"
$pip tokenizers==0.23.3 || exit 2
"$d/v/bin/python" -W ignore - <<'E'
from tokenizers import Tokenizer, models, pre_tokenizers as p, trainers
extra = {}
for name, split in {"Metaspace()": p.Metaspace(), "Metaspace(first)": p.Metaspace(prepend_scheme="first"),
                    "ByteLevel()": p.ByteLevel(), "ByteLevel(no space)": p.ByteLevel(add_prefix_space=False)}.items():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = split
    # no merges are learned, so every letter is a token: only the spaces can differ
    t.train_from_iterator(["1, 2, 3"], trainers.BpeTrainer(vocab_size=1, show_progress=False))
    t.add_tokens(["<C>"])
    plain, put = t.encode("1, 2, 3").tokens, t.encode("1<C>, 2<C>, 3").tokens
    extra[name] = len(put) - len(plain) - 2
    print(f"{name}: {' '.join(plain)}  ->  {' '.join(put)}  ({extra[name]} more than the two put in);"
          f" a lone comma: {len(t.encode(',').ids)} id(s)")
assert list(extra.values()) == [2, 0, 2, 0], "changed"
E
