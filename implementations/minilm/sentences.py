"""Sentences that the checkpoint is tried on, written for this repository: short and long, of many languages, or empty.

The model was trained on English. Of other scripts it knows the letters rather than the words, which makes no difference
to the arithmetic: every sentence is a row of numbers that all implementations must turn into the same 384.
"""

from __future__ import annotations

SENTENCES = (
    "A cat is asleep on the warm windowsill.",
    "On the sunny window ledge a kitten is napping.",
    "The central bank raised interest rates for the third time this year.",
    "Borrowing money became more expensive again after the bank's decision.",
    "Dogs are not allowed in this restaurant.",
    "You are welcome to bring your dog when you eat here.",
    "How do I set a new password for my account?",
    "I cannot log in, because I have forgotten my password.",
    "The train to Lyon leaves at a quarter past seven.",
    "Le train pour Lyon part à sept heures et quart.",
    "Der Zug nach Lyon fährt um Viertel nach sieben ab.",
    "El tren a Lyon sale a las siete y cuarto.",
    "Il treno per Lione parte alle sette e un quarto.",
    "Поезд в Лион отправляется в четверть восьмого.",
    "开往里昂的火车七点一刻出发。",
    "リヨン行きの列車は七時十五分に出発します。",
    "يغادر القطار إلى ليون في الساعة السابعة والربع.",
    "Το τρένο για τη Λυών φεύγει στις επτά και τέταρτο.",
    "🎉 We shipped the new version on Friday! 🚀",
    "After months of work, the release is finally out.",
    "🐍🔥",
    "Stack the weights, scan over them, and the graph keeps its size.",
    "A Python loop over the layers copies the block once for every layer.",
    "for w in weights: y = w @ y",
    "The baker gets up at three, long before the street is awake. He lights the oven, weighs the flour, and folds the "
    "dough that has been rising since the evening, slowly, so that no air escapes. At five the first loaves come out, "
    "dark and crackling, and the smell creeps under the doors of the houses opposite. By seven there is a queue at the "
    "counter: the nurse after her night shift, two schoolchildren with coins in their fists, and the old man who "
    "always asks for yesterday's bread.",
    "Fresh bread is sold here early in the morning.",
    "",
    "Hello",
)

# (sentence, another) whose similarity is shown, by their places in SENTENCES: near in meaning, and far.
PAIRS = (
    (0, 1), (0, 4), (0, 2),
    (2, 3), (4, 5), (6, 7),
    (8, 9), (8, 10), (8, 13), (8, 14), (8, 24),
    (18, 19), (18, 22),
    (21, 22), (21, 23),
    (24, 25),
)  # fmt: skip
