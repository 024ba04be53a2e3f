"""Docstrings as prose: both styles, every kind of markup, and nothing that is no English."""

import pytest

from data.docstrings import parse

NUMPY = """add(x1, x2, /, out=None)

Draw samples from a *normal* (Gaussian) distribution.

The probability of :math:`n` draws, e.g. of ``size`` many, is bell shaped [1]_. It is
described by De Moivre (see `Table 1 <http://x.y>`_).

.. deprecated:: 1.0
   Use something else, please do so now.

.. note:: New code should use the
   :meth:`~numpy.random.Generator.normal` method.

Parameters
----------
loc : float or array_like of floats
    Mean of the distribution. Default is 0. Must be real.

    .. versionadded:: 2.0
       Never mind this version at all.
size : int or tuple of ints, optional
    Output shape. If the given shape is drawn, so be it::

        code(block) that is never prose

    After the block.

Returns
-------
out : ndarray
    Drawn samples from the parameterized distribution.

See Also
--------
scipy.stats.norm : probability density function,
    distribution or others.
:func:`lognormal`, `~x.gamma`
:obj:`special`
    with a text

Notes
-----
The density has the value :math:`\\frac{1}{2}` somewhere in it.

- The first item of a list.
- The second item
  goes on.

=====  =====
a      table
=====  =====
True   False
=====  =====

.. math:: p(x) = \\frac{1}{\\sqrt{ 2 \\pi \\sigma^2 }}

   and more of it

References
----------
.. [1] Wikipedia says that it is so.

Examples
--------
Draw samples from the distribution:

>>> mu, sigma = 0, 0.1
output that is no prose
"""

GOOGLE = r"""argsort(input, dim=-1) -> Tensor
argsort(input, dim=-1, stable=False) -> Tensor

Returns the indices that sort a :class:`~torch.Tensor` along a dimension. torch.sort(input) gives both.

Letting :math:`\mathbb{K}` be real, nothing follows. See :doc:`/notes/randomness` for more.

.. seealso::

    :func:`torch.sort` gives the values too.

Args:
    input (Tensor): the input tensor.
    dim (int, optional): the dimension to sort along;
        the last one by default
    *others (Tensor or (int, int)): anything else

Returns:
    Tensor: a tensor of indices.

Note:
    This operation may be slow on some devices.

Raises:
    ValueError: when the dimension does not exist in it.

Example::

    >>> torch.argsort(a)
    tensor([0])

It ends with prose after the sections. See also :meth:`torch.topk`.
"""


def said(text: str, kind: str) -> list[str]:
    return [sentence for of, sentence in parse(text).sentences if of == kind]


def test_numpydoc():
    doc = parse(NUMPY)
    assert doc.summary == "Draw samples from a normal (Gaussian) distribution."
    assert said(NUMPY, "extended") == [
        "The probability of n draws, e.g. of size many, is bell shaped.",
        "It is described by De Moivre (see Table 1).",
        "New code should use the normal method.",
    ]
    assert said(NUMPY, "parameters") == [
        "Mean of the distribution.",
        "Default is 0.",
        "Must be real.",
        "Output shape.",
        "If the given shape is drawn, so be it",
        "After the block.",
    ]
    assert said(NUMPY, "returns") == ["Drawn samples from the parameterized distribution."]
    assert said(NUMPY, "notes") == ["The first item of a list.", "The second item goes on."]
    assert said(NUMPY, "examples") == ["Draw samples from the distribution:"]
    assert doc.see_also == ("scipy.stats.norm", "lognormal", "x.gamma", "special")


def test_google():
    doc = parse(GOOGLE)
    assert doc.summary == "Returns the indices that sort a Tensor along a dimension."
    assert said(GOOGLE, "extended") == [
        "torch.sort(input) gives both.",
        "It ends with prose after the sections.",
        "See also torch.topk.",
    ]
    assert said(GOOGLE, "parameters") == [
        "the input tensor.",
        "the dimension to sort along; the last one by default",
        "anything else",
    ]
    assert said(GOOGLE, "returns") == ["a tensor of indices."]
    assert said(GOOGLE, "notes") == ["This operation may be slow on some devices."]
    assert said(GOOGLE, "examples") == []
    assert doc.see_also == ("torch.sort", "torch.topk")


@pytest.mark.parametrize("text", ["", "   \n  \n", "f(x)", "f(x) -> y\n\n", ">>> 1\n2", ".. math:: x", "Name(field=1)\n"])
def test_docstrings_that_say_nothing(text: str):
    assert parse(text) == parse("")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Compute :math:`\\sqrt{2}` quickly.", "Compute quickly."),
        ("Relu(x) -> y\nApplies it.", "Applies it."),
        ("Two. Sentences.", "Two."),
        ("One, i.e. A and B vs. C. Next.", "One, i.e. A and B vs. C."),
        ("Same as ``a * b`` and `c`_.", "Same as a * b and c."),
        ("Of *args and **kwargs and **bold**.", "Of *args and **kwargs and bold."),
    ],
)
def test_summaries(text: str, expected: str):
    assert parse(text).summary == expected
