"""Latent thoughts: vectors that are inferred anew for every sequence.

The idea of "Scalable Language Models with Posterior Inference of Latent Thought Vectors",
arXiv 2502.01567, in its smallest form, beside that of latent_tokens.py:

           latent tokens                             latent thoughts
    one set of vectors for all inputs        a set of vectors for every sequence

            u <------------+                   mean, variance <--------+  fast: T steps
            |              | gradient                 | z = a sample   |  for this sequence
            v              |                          v                | gradient
    x -> frozen GPT -> NLL +                 x -> decoder -> NLL + KL -+
                                                   ^           |          slow: then one step
                                                   +-----------+          for all sequences

Read in this order:

    text.py       the sequences: documents under a hidden rule, and how well one can predict them
    model.py      the decoder p(x | z), its settings, and the models that it is compared with
    learning.py   the posterior q(z), the fast loop, the slow one, and the bound
    measure.py    what is measured on a trained model
    report.py     the file of results, and the tables made of it
    __main__.py   the command

    python -m extras.latent_thoughts                  thoughts, two plain GPTs, the decoder alone
    python -m extras.latent_thoughts --seeds 3 --models all
    python -m extras.latent_thoughts --report runs/thoughts.jsonl

What it gives, and how its settings were found: README.md.
"""
