"""Write the bodies; python -m extras.exercises my.py compares them with ours."""


def stands_before(k: int, t: int) -> bool:
    """The placement k_m: do its latents stand before verbal token t = 0, 1, ...?

    They stand after every k verbal tokens, and nothing stands before the first one.

    >>> [stands_before(3, t) for t in range(7)]
    [False, False, False, True, False, False, True]
    """


def position_ids(is_latent: list[bool]) -> list[int]:
    """The position id of each slot of an augmented row; one slot is latent or verbal.

    A latent takes the id of the verbal token after it. The last slot is a verbal token.

    >>> position_ids([True, False, True, False, False])
    [0, 0, 1, 1, 2]
    """


def sources(token_ids: list[int], comma: int, m: int) -> list[int]:
    """The slots of a query with Comma_m: j < m for latent j, m + t for verbal token t.

    >>> sources([7, 3, 9], comma=3, m=2)  # before the 3 stand latents 0 and 1
    [2, 0, 1, 3, 4]
    """


def read_slots(is_latent: list[bool], query_slots: int) -> list[int]:
    """The slot whose output predicts each verbal token of the response, in order.

    The first ``query_slots`` slots are the query's, latents at its end included; the others hold
    the response. What is read must not have seen latents that wait for the token it predicts.

    >>> read_slots([False, False, False, True, False], query_slots=2)
    [1, 2]
    """
