"""What the box is asked and what it answers: the only place that knows.

A phrasing is a small grammar: ``(a|b|)`` stands for one of its alternatives. ``trained`` phrasings
are what the recipe synthesises for training, ``held_out`` ones are for the evaluation only. Beside
the grammars stand the sentences of `phrasings.json`, written by others who knew what each question
means and none of its phrasings; of the first 1,260 of them, some 260, drawn by chance, are held
out.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

GREETING = "Hi there! How can I help you?"


@dataclass(frozen=True)
class Question:
    """One thing that a user can say, in several phrasings, and the answer to it.

    `sentences` are trained phrasings too, without alternatives.
    """

    name: str
    answer: str
    trained: tuple[str, ...]
    sentences: tuple[str, ...]
    held_out: tuple[str, ...]


_SENTENCES = json.loads(Path(__file__).with_name("phrasings.json").read_text())
HELD_OUT_OF_OTHERS = frozenset(
    line for sentences in _SENTENCES.values() for line in sentences["held_out"]
)


def _question(name: str, answer: str, trained: str, held_out: str) -> Question:
    def lines(text: str) -> tuple[str, ...]:
        return tuple(line.strip() for line in text.strip().splitlines())

    sentences = {use: tuple(_SENTENCES[name][use]) for use in ("trained", "held_out")}
    return Question(
        name,
        answer,
        lines(trained),
        sentences["trained"],
        lines(held_out) + sentences["held_out"],
    )


def _capital(country: str, city: str) -> Question:
    return _question(
        country.lower(),
        f"The capital of {country} is {city}.",
        f"""
        (what is|what's|tell me|name|do you know|give me|say) the capital (city|) of {country}
        what's the capital (city|) of {country}
        what is the capital of {country}
        (what|which) city is the capital of {country}
        (the|) capital of {country}
        {country}'s capital (city|)
        what is {country}'s capital (city|)
        (what does|does) {country} have (as|for) a capital
        what capital (city|) does {country} have
        """,
        f"""
        which is the capital of {country}
        I would like to know the capital of {country}
        could you name {country}'s capital
        the capital of {country} is which city
        """,
    )


QUESTIONS: tuple[Question, ...] = (
    _question(
        "hello",
        "Hello! It is good to hear you.",
        """
        hello (there|)
        hi (there|)
        hey (there|)
        hello hello
        good (morning|day|afternoon|evening)
        (hello|hi) (my friend|computer|again)
        greetings
        hi (hello|hi)
        """,
        """
        oh hello
        hi over there
        hello to you
        """,
    ),
    _question(
        "how_are_you",
        "I am doing very well, thank you.",
        """
        how are you (doing|today|doing today|feeling|feeling today|)
        how are you
        how do you (do|feel) (today|)
        how is it going (today|)
        (are you|you) (well|okay|all right|fine) (today|)
        how have you been
        how are things (going|) (today|)
        """,
        """
        hello how are you
        and how are you this morning
        so how are you doing these days
        """,
    ),
    _question(
        "who_are_you",
        "I am a small speech model. You can call me Joe.",
        """
        who are you
        what is your name
        what's your name
        (tell me|say) (your name|who you are)
        (do you have|have you got) a name
        what (should|can|may|do) I call you
        what are you called
        who am I (talking|speaking) (to|with)
        (introduce|present) yourself
        """,
        """
        may I ask your name
        would you tell me who you are
        I don't know your name
        """,
    ),
    _question(
        "what_can_you_do",
        "I can answer simple questions and make small talk.",
        """
        what can you do (for me|)
        what can I ask (you|)
        (what are|tell me) your (skills|abilities|talents)
        (how|what) can you help (me|) (with|)
        what are you able to do
        what (things|questions) can you (do|answer)
        what are you good (at|for)
        what do you know how to do
        """,
        """
        tell me what you can do
        so what can you actually do
        what sort of things can you do
        """,
    ),
    _question(
        "thanks",
        "You are very welcome. My pleasure.",
        """
        thank you (very much|so much|a lot|)
        thanks (a lot|very much|so much|)
        many thanks
        thank you for (your|the) (help|answer)
        (great|good|okay|perfect) thank you
        thanks for (your help|that|the answer|helping me)
        I thank you
        """,
        """
        oh thank you very much indeed
        all right thanks
        thank you my friend
        """,
    ),
    _question(
        "goodbye",
        "Goodbye! It was nice talking to you.",
        """
        goodbye (for now|)
        bye (bye|)
        bye bye
        see you (later|soon|tomorrow)
        (okay|well|all right) (goodbye|bye|bye bye)
        farewell
        I have to go (now|)
        goodbye (my friend|computer)
        until next time
        """,
        """
        goodbye and see you soon
        well then goodbye
        bye for now
        """,
    ),
    _question(
        "who_made_you",
        "A team of engineers built me from code.",
        """
        who (made|built|created|trained|designed|programmed) you
        who (is|are) your (maker|makers|creator|inventor|creators)
        who (invented|developed) you
        by whom were you (made|built|created)
        (tell me|say) who (made|built|created) you
        what company (made|built|created) you
        who were you (made|built|trained|created) by
        """,
        """
        do you know who made you
        which people built you
        I wonder who created you
        """,
    ),
    _question(
        "human",
        "No, I am not a person. I am a computer program.",
        """
        are you (a|) (human|person|real|robot|machine)
        are you (a real|a) (person|human|human being)
        are you (human|alive|real)
        are you (an|) artificial (intelligence|)
        is this a (real|) (person|human|robot)
        am I talking to a (person|human|machine|robot)
        are you a (robot|machine|computer)
        """,
        """
        would you say you are human
        are you really a robot
        I think you are a robot
        """,
    ),
    _capital("France", "Paris"),
    _capital("Germany", "Berlin"),
    _capital("Italy", "Rome"),
    _capital("Japan", "Tokyo"),
    _question(
        "count",
        "One, two, three, four, five.",
        """
        count (up|) (to|from one to) five
        (can|could) you count (to five|)
        (please|) count to five
        count from one to five
        (do|) you know how to count
        (tell me|say) the numbers (from one|up) to five
        (let's|let us) count to five
        show me how you count
        """,
        """
        I want you to count to five
        would you count to five
        try to count up to five
        """,
    ),
    _question(
        "joke",
        "Why was the computer cold? It left its windows open.",
        """
        tell me a (joke|funny joke|good joke)
        tell me a joke
        (do|) you know (a|any) (joke|jokes|good jokes)
        make me laugh
        (say|tell me) something funny
        I want to hear a joke
        (can|could) you (tell a joke|make a joke|be funny)
        another joke (please|)
        have you got a joke (for me|)
        """,
        """
        give me a joke
        I would love to hear a joke
        how about a joke
        """,
    ),
    _question(
        "sky",
        "On a clear day, the sky is blue.",
        """
        what (color|colour) is the sky
        (what's|what is) the (color|colour) of the sky
        which color (does the sky have|is the sky)
        why is the sky blue
        is the sky (blue|green|red)
        what does the sky look like
        tell me (the color of|about) the sky
        how does the sky look
        """,
        """
        do you know what color the sky is
        which color is the sky above us
        say the color of the sky
        """,
    ),
    _question(
        "grass",
        "Fresh grass is green.",
        """
        what (color|colour) is (the|) grass
        (what's|what is) the (color|colour) of (the|) grass
        which color (does grass have|is the grass)
        why is (the|) grass green
        is (the|) grass (blue|green|red)
        what does (the|) grass look like
        tell me (the color of|about) (the|) grass
        """,
        """
        do you know what color grass is
        which color is fresh grass
        say the color of grass
        """,
    ),
    _question(
        "time",
        "I do not have a clock, so I cannot tell the time.",
        """
        what time is it (now|)
        what's the time (now|)
        what is the time (right now|)
        (can|could) you tell me the time
        do you (know|have) (the|what) time (it is|)
        tell me the time
        what time do you have
        how late is it
        """,
        """
        have you got the time
        please give me the time
        what is the exact time
        """,
    ),
    _question(
        "planet",
        "Jupiter is the largest planet.",
        """
        (what|which) is the (largest|biggest) planet
        what's the (largest|biggest) planet (of all|)
        which planet is the (largest|biggest)
        (name|tell me) the (largest|biggest) planet
        what planet is (biggest|largest|the biggest)
        (do you know|say) the (largest|biggest) planet
        the (largest|biggest) planet in the solar system
        """,
        """
        what is the largest planet in the solar system
        of all planets which is biggest
        which planet is bigger than all the others
        """,
    ),
    _question(
        "bees",
        "Busy bees make sweet honey.",
        """
        what do bees (make|do|produce)
        what (does a|do) (bee|bees) make
        what is (made|produced) by bees
        tell me (about|what) bees (make|do|)
        what do we get from bees
        (what|which) food do bees make
        why are bees (useful|important)
        """,
        """
        do you know what bees make
        what are bees making
        what comes from bees
        """,
    ),
    _question(
        "cows",
        "Cows give us milk, and they say moo.",
        """
        what do cows (give us|give|say|make|do)
        what does a cow (give|say|make|do)
        (what|which) sound does a cow make
        what do we get from cows
        tell me (about cows|what cows give us)
        what (noise|sound) do cows make
        where does milk come from
        why do we keep cows
        """,
        """
        do you know what a cow says
        what is a cow good for
        who gives us milk
        """,
    ),
    _question(
        "sleep",
        "No, I never sleep. I am always awake.",
        """
        do you (ever|) sleep
        are you (tired|sleepy)
        when do you (sleep|go to bed|rest)
        do you (need|like) (sleep|to sleep|a rest|a nap)
        how (long|much) do you sleep
        did you sleep well
        (do|) you (ever|) (get|feel) (tired|sleepy)
        do you (have|see) dreams
        """,
        """
        how many hours do you sleep
        don't you ever get tired
        at night do you sleep
        """,
    ),
    _question(
        "eat",
        "I do not eat. I only need electricity.",
        """
        what do you (like to|) eat
        are you hungry
        do you (eat|like|need) (food|pizza|anything|)
        (what's|what is) your favorite food
        what did you (eat|have) for (breakfast|lunch|dinner)
        do you eat
        (would|do) you (like|want) (something|anything) to eat
        do you (drink|like) (coffee|tea|water)
        """,
        """
        tell me what you eat
        don't you ever get hungry
        which food do you like
        """,
    ),
    _question(
        "fact",
        "Here is a fun fact. An octopus has three hearts.",
        """
        tell me (a|some|another) (fun fact|fact|facts|interesting fact)
        tell me a fact
        tell me something (interesting|new|surprising|I don't know)
        (do|) you know (a|any) (fun|interesting|) (fact|facts)
        give me a (fun|) fact
        say something interesting
        teach me something (new|)
        surprise me
        """,
        """
        I want to hear a fun fact
        how about an interesting fact
        share a fact with me
        """,
    ),
    _question(
        "how_do_you_work",
        "I turn sound into tokens, and tokens into sound.",
        """
        how do you work
        how (are|were) you (built|made)
        (explain|tell me|show me) how you work
        how does (this|it|that) work
        what is (inside|in) you
        how do you (think|function|operate)
        what makes you work
        how do you do (it|that|this)
        """,
        """
        can you explain how you work
        I wonder how you work
        how does this thing work
        """,
    ),
    _question(
        "music",
        "Yes, I love music, especially the piano.",
        """
        do you (like|love|enjoy|listen to) music
        what (music|kind of music) do you (like|love|listen to)
        (what's|what is) your favorite music
        (are you|) (a fan of|into) music
        tell me about music
        (can|do) you play (music|the piano|an instrument)
        which music do you (like|prefer)
        """,
        """
        what sort of music do you like
        is there music that you like
        do you care for music
        """,
    ),
    _question(
        "languages",
        "I only speak English, I am afraid.",
        """
        (what|which|how many) languages do you (speak|know)
        (do|can) you speak (French|Spanish|Chinese|English|another language|other languages)
        what language (is this|do you speak|are you speaking)
        (do|) you (understand|know) (other|any other|foreign) languages
        (can|could) you (talk|speak|answer) in (French|Spanish|Chinese)
        tell me which languages you speak
        """,
        """
        how many languages can you speak
        do you know any languages
        is English your only language
        """,
    ),
    _question(
        "opposite",
        "The opposite of hot is cold.",
        """
        (what's|what is) the opposite of hot
        (tell me|name|say|give me) the opposite of hot
        what is hot's opposite
        which word is the opposite of hot
        the opposite of hot (is|)
        (do you know|what word is) the opposite of hot
        hot has what opposite
        """,
        """
        what would be the opposite of hot
        what do you call the opposite of hot
        find the opposite of hot
        """,
    ),
    _question(
        "romeo",
        "William Shakespeare wrote Romeo and Juliet.",
        """
        who (wrote|is the author of|is the writer of) Romeo and Juliet
        (tell me|do you know) who wrote Romeo and Juliet
        which (author|writer|poet) wrote Romeo and Juliet
        by whom is Romeo and Juliet
        (the|) author of Romeo and Juliet
        who was the (author|writer) of Romeo and Juliet
        Romeo and Juliet was written by whom
        """,
        """
        Romeo and Juliet who wrote that
        can you tell me who wrote Romeo and Juliet
        what is the name of the author of Romeo and Juliet
        """,
    ),
    _question(
        "favorite_color",
        "My favorite color is orange.",
        """
        (what's|what is) your favorite (color|colour)
        (which|what) color do you (like|prefer|like best|like most)
        do you have a favorite color
        (tell me|say|name) your favorite color
        what color is your favorite
        which is your favorite color
        your favorite color (please|)
        """,
        """
        is there a favorite color of yours
        which one is your favorite color
        do you like a color most of all
        """,
    ),
    _question(
        "moon",
        "Neil Armstrong was the first man on the moon.",
        """
        who was (the|) first (man|person|human|) on the moon
        who (walked|landed|stood) on the moon (first|)
        (tell me|name|do you know) (who was|) the first (man|person) on the moon
        which (man|person|astronaut) was first on the moon
        who first (walked|landed|stood) on the moon
        the first (man|person) on the moon
        who (went|flew) to the moon (first|)
        """,
        """
        who set foot on the moon first
        what was the name of the first man on the moon
        the moon who was there first
        """,
    ),
)

# What people say before and after a question; an empty one weighs as much as all others together.
_BEFORE = (
    "please",
    "hey",
    "so",
    "okay",
    "um",
    "well",
    "and",
    "now",
    "can you say",
    "tell me",
    "Joe",
    "please tell me",
    "can you tell me",
    "could you tell me",
    "I want to know",
    "do you know",
    "let me ask you",
    "my question is",
    "excuse me",
    "oh",
    "all right",
    "listen",
    "just say",
)
_AFTER = ("please", "then", "Joe", "now", "for me", "my friend", "if you know", "again")

# Words of all kinds of sounds, for speech that asks nothing: the codec's training needs variety.
WORDS = """
about above across action after again age agree air all almost along always amount animal answer
apple arm around arrive art ask autumn away baby back bad bag ball bank basket bath beach bear
beautiful because bed before begin behind believe bell below best better between bird birthday black
blanket blood blow blue board boat body bone book both bottle bottom box boy branch brave bread
breakfast bridge bright bring brother brown brush bucket build burn bus busy butter button buy cake
call camera candle car card care carry castle cat catch cause center chair chance change cheap check
cheese cherry child choose church circle city class clean clear climb clock cloth cloud coat coffee
cold collect color come cook cool copper copy corner cost cotton count country courage course cover
cross crowd cry cup curtain cut dance danger dark daughter day deep desk dinner direction dish
distance doctor dog door double doubt down draw dream dress drink drive drop dry during dust each
early earth east easy edge egg eight either electric elephant empty end engine enjoy enough evening
every example eye face fact fair fall family famous far farm fast father feather field fight fill
finger finish fire first fish five flag flat floor flower fly follow food foot forest forget fork
four free fresh friend front fruit full funny future game garden gate general gentle giant girl give
glad glass gold good grass gray great green ground group grow guess hair half hammer hand happy hard
hat have head health hear heart heavy help high history hold hole holiday home hope horse hospital
hot hour house however huge hundred hungry hurry ice idea important inside iron island jacket jewel
job join journey joy judge juice jump jungle keep key kind king kitchen knee knife know ladder lake
lamp land language large last late laugh law lazy lead leaf learn leave left leg lemon lesson letter
level library life light like line lion listen little live lock long look lost love low lucky lunch
machine magic make man many map mark market master match matter maybe meal measure meat medicine
meet melon middle milk million mind minute mirror mistake mixture money monkey month moon morning
mother mountain mouse mouth move much music nail name narrow nation nature near neck need needle
never new night nine noise none north nose nothing notice number ocean off offer office often oil
old only open opposite orange order other outside oven over owner oxygen page paint pair palace
paper parent park part party past path peace pencil people pepper perfect perhaps phone photo piano
picture piece pillow pilot pink place plan plane planet plant plate play please pleasure pocket
point police pond poor possible potato power present pretty price prison promise proud public pull
purple push quarter queen question quick quiet rabbit radio rain reach read ready reason red
remember rest rice rich ride right ring river road rock roof room root rope rose round rule run sad
safe sail salt same sand save say school science sea season seat second secret see seed sell send
serious seven shadow shape share sharp sheep sheet ship shirt shoe shoot shop short shoulder shout
show shut sick side silver simple since sing sister size skin sky sleep slow small smell smile smoke
smooth snow soap soft soldier some song soon sorry sound soup south space speak special speed spell
spend spoon spring square stage stairs stamp stand star start station stay steam step stick still
stone stop storm story strange street strong student sudden sugar summer sun surprise sweet swim
table tail take talk tall taste tea teach team television tell temple ten tennis test thank thick
thin thing think thirty thought thousand through throw thumb thunder ticket tiger time tired
together tomorrow tongue tonight tool tooth top total touch toward town toy train travel treasure
tree triangle trip trouble truck true trust turn twelve twenty uncle under understand unhappy until
usual valley value vegetable very village visit voice wait wake walk wall want war warm wash waste
watch water wave way weak wear weather wedding week weight welcome west wet wheel where which while
whisper white wide wife wild wind window wine winter wire wise wish without woman wonder wood word
work world worry write wrong yard year yellow yesterday yet young zebra zero zone
""".split()


# Trained, and mistaken for others too often to be promised: the card does not list them, and the
# evaluation does not ask them.
UNSURE = frozenset(("who_made_you", "human", "eat"))
LISTED = tuple(question for question in QUESTIONS if question.name not in UNSURE)

# With words around them, phrasings for training can become these.
_HELD_OUT = {line.lower() for question in QUESTIONS for line in question.held_out}


def expand(grammar: str, random_source: random.Random) -> str:
    """One of the texts that a phrasing stands for, alternatives drawn evenly."""
    while "(" in grammar:
        grammar = re.sub(
            r"\(([^()]*)\)",
            lambda match: random_source.choice(match.group(1).split("|")),
            grammar,
        )
    return " ".join(grammar.split())


def ask(question: Question, random_source: random.Random) -> str:
    """One way to put the question that training may use, with words around it as people have."""
    # A grammar has many sentences, so that few grammars weigh as much as many sentences.
    lines = question.trained if random_source.random() < 0.5 else question.sentences
    text = expand(random_source.choice(lines), random_source)
    if random_source.random() < 0.35:
        text = f"{random_source.choice(_BEFORE)} {text}"
    if random_source.random() < 0.2:
        text = f"{text} {random_source.choice(_AFTER)}"
    return text if text.lower() not in _HELD_OUT else ask(question, random_source)


def ask_in_passing(question: Question, random_source: random.Random) -> str:
    """As `ask`, now and then among words that say nothing: what matters is to be picked out."""
    text, kind = ask(question, random_source), random_source.random()
    if kind < 0.1:
        return f"{chatter(random_source, 1, 2)} {text}"
    if kind < 0.2:
        return f"{text} {chatter(random_source, 1, 2)}"
    return text


def ask_held_out(question: Question, random_source: random.Random) -> str:
    """One way to put the question that training never uses."""
    return expand(random_source.choice(question.held_out), random_source)


def chatter(random_source: random.Random, least: int = 2, most: int = 6) -> str:
    """A row of unrelated words."""
    return " ".join(random_source.sample(WORDS, random_source.randint(least, most)))


def plain(question: Question) -> str:
    """The first phrasing of a question, with the first of its alternatives."""
    text = question.trained[0]
    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", lambda match: match.group(1).split("|")[0], text)
    return " ".join(text.split())
