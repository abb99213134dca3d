//! Words that must be taken as heard. The closest known word is a good guess for a garbled word, and a bad one for a
//! real word: "all" is not a misheard "hall", nor "even" a "seven", and "don't" is never a filler.

use std::{collections::HashSet, sync::LazyLock};

/// Words that reverse a command, or except something from it.
const NEGATIONS: &[&str] = &[
    "not",
    "no",
    "never",
    "dont",
    "don't",
    "don",
    "doesn't",
    "doesnt",
    "didn't",
    "didnt",
    "won't",
    "wont",
    "can't",
    "cant",
    "cannot",
    "isn't",
    "isnt",
    "aren't",
    "arent",
    "wasn't",
    "weren't",
    "shouldn't",
    "shouldnt",
    "wouldn't",
    "wouldnt",
    "couldn't",
    "couldnt",
    "mustn't",
    "hasn't",
    "haven't",
    "hadn't",
    "needn't",
    "ain't",
    "aint",
    "without",
    "none",
    "nothing",
    "nobody",
    "neither",
    "nor",
    "instead",
    "rather",
    "except",
    "excluding",
    "besides",
    "but",
    "unless",
    "avoid",
    "refrain",
    "refuse",
    "forbid",
    "hardly",
    "barely",
    "anymore",
    "nope",
    "nah",
];

/// First words of questions and conditions; no order begins with them.
const QUESTIONS: &[&str] = &[
    "is",
    "are",
    "was",
    "were",
    "am",
    "do",
    "does",
    "did",
    "has",
    "have",
    "had",
    "why",
    "when",
    "who",
    "whose",
    "which",
    "where",
    "how",
    "what",
    "if",
    "should",
    "shall",
    "may",
    "might",
    "must",
    "isn't",
    "aren't",
    "wasn't",
    "didn't",
    "doesn't",
    "hasn't",
    "haven't",
    "won't",
    "wouldn't",
    "shouldn't",
    "what's",
    "who's",
    "where's",
    "how's",
];

/// Words that change a number or a time if a sentence leaves them unexplained. `#` stands for written text that cannot
/// be read.
pub(crate) const NUMERIC: &[&str] = &[
    "#",
    "minus",
    "plus",
    "double",
    "twice",
    "triple",
    "dozen",
    "few",
    "several",
    "every",
    "daily",
    "day",
    "days",
    "week",
    "weeks",
    "month",
    "months",
    "year",
    "years",
    "today",
    "tomorrow",
    "yesterday",
    "weekend",
    "weekday",
    "weekdays",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "mondays",
    "tuesdays",
    "wednesdays",
    "thursdays",
    "fridays",
    "saturdays",
    "sundays",
    "later",
    "after",
    "before",
    "until",
    "first",
    "third",
    "fourth",
    "fifth",
    "sunrise",
    "sunset",
    "dawn",
    "dusk",
    "degrees",
    "million",
    "billion",
];

/// The commonest words of spoken English, without those that the recognizer often writes for a command's word ("of" for
/// "off", "time" for "timer").
const COMMON: &str = "\
a able about above across actually add after again against age ago air all almost alone along already also always am among an \
and animal animals another any anybody anyone anything apple are area arm around art as ask asked at ate away \
baby back bad bag ball band bank bath be bear bears beautiful became because become bed been before began behind being believe \
bell bells best better between big bird birds black blue boat body book books born both bought box boy boys bread break bring \
brother brought brown bus business but buy by call called came can cannot car card care carry case cat cats caught change check \
chicken child children city class clean clear close coat coffee cold color come comes coming cook cool corner could country \
couple course cup cut dad dance dark day days dead deal dear death did die different dinner do doctor does dog dogs doing done \
door down draw dream dress drink drive drop dry during each early earth east eat egg eggs either else empty end enough even \
evening ever every everybody everyone everything exactly eye eyes face fact fall family fan far farm fast father feel feet fell \
felt few field fight film find fine finger finish fire first fish fit floor fly follow food foot for forget form found free \
friend friends from front full fun funny game garden gave get girl give glad glass go god goes going gold gone good got grass \
great green grew ground group grow guess had hair half hall hand hands happen happened happy hard has hat have he head hear \
heard heart heat heavy held hell hello her here high hill him himself his history hit hold hole home hope horse hot house how \
however huge human hundred hurt i ice idea if important in inside into is it its job join just keep kept key kid kids kill kind \
king kiss knew know known lady land large last late laugh law lay lead learn least leave left leg less let letter lie life lift \
like line list listen little live lives living long look looked looking looks lose lost lot love low lunch machine mad made mail \
make man many map mark market may maybe me mean meat meet men met milk mind mine miss moment money moon more morning most \
mother mountain mouth move movie much mum music must my name near neck need never new news next nice night no nobody noise \
none north nose not note nothing now number ocean often oh oil old once one only open or orange order other our out outside \
over own page pain paint pair paper parent park part party pass past pay pen people perhaps person phone picture piece place \
plan plane plant play player please point police poor possible power pretty problem pull push put queen question quick quickly \
quite race radio rain ran reach read ready real really reason red rest rice rich ride right ring river road rock room rooms \
rope round rule run sad safe said sail salt same sand sat saw say says school sea seat second see seem seen self sell send sent \
set several shall she ship shirt shoe shoes shop short should shout show shut sick side sign simple since sing sister sit size \
skin sky sleep slow small smell smile smoke snow so soft soil sold some somebody someone something sometimes son song soon sorry \
sort sound soup south space speak special spoke sport spring stand star start state stay step still stone stood stood store story \
street strong student study such sugar summer sun sure swim table take taken taking talk tall taste tea teach teacher team tell \
ten test than thank thanks that the their them then there these they thing things think this those though thought thousand \
three through throw till tired to today together told tomorrow tonight too took top touch toward town toy train travel tree \
trees trip trouble true truth try turn two under understand until up upon us use used usually very village visit voice wait \
walk wall want wanted war warm was wash watch water wave way we wear weather week weekend well went were west wet what when \
where which while white who whole whose why wide wife wild will win wind window wine winter wish with without woman women won \
wonder wood word words work world worry would write wrong yard year years yellow yes yesterday yet you young your zoo \
off on in at by up an light lights lamp ours shine tell fell sell bill pill will fill mill kill till tin pin bin sin win \
hail whale while mall small tall stall walk chalk room groom broom zoom rum roam foam comb tomb rhyme lime dime dine \
house mouse horse course force nurse purse eighty fort sort port short sport court \
nor form norm warm worm war far bar tar star jar car care dare bare fare hare rare share stare square";

/// Other forms of the commands' words, which report something and order nothing, and words that sound like them.
const LIKE_COMMANDS: &str = "\
woke woken waked wakes waking awake awoke bake cake lake fake rake sake wade wage cancels cancelled canceled cancelling channel \
candle castle council counsel deleted deletes deleting removed removes removing remote cleared clears clearing clean ended ends \
ending send bend tend lend fend stopped stops stopping stomp strop stoop top turned turns turning burn switched switches \
switching stitch twitch witch puts putting cut nut hut gut pat pit pot started starts starting smart stark chart created creates \
creating makes making made moved moves moving love dove changed changes changing chance charge range resets snoozed snoozes \
snoozing sneeze snore added adds adding odd mad dad sad extended extends extending extent reminded reminds reminding rewind \
dimmed dims dimming rim swim slim trim jim tim whim dip dig din alarmed alarming harm timed times timing tiger timber timbers \
tights nights rights sights fights flights heights bites kites knights delights limits lifts lists lots lasts lighten lighter \
lightly lightning sight fight might flight slight plight tight bright fright delight knight height kite bite site lit \
helped helps held quit quilt diet riot sits jet jets bet wet vet pet sheds kitchens chicken bedrooms bathrooms offices garages \
halls stops wakeful weathered feather leather heather rather gather raining rained trains drain brain grain";

static COMMON_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    COMMON
        .split_whitespace()
        .chain(LIKE_COMMANDS.split_whitespace())
        .collect()
});

/// Whether `word` is a real word of its own, never a misheard other one.
pub(crate) fn is_common(word: &str) -> bool {
    COMMON_WORDS.contains(word) || is_negation(word) || QUESTIONS.contains(&word) || NUMERIC.contains(&word)
}

/// Whether `word` negates the words around it.
pub(crate) fn is_negation(word: &str) -> bool {
    NEGATIONS.contains(&word) || word.ends_with("n't")
}

/// Position and number of the words that except something: "other than", "save the". `None` if nothing is excepted.
pub(crate) fn exception(words: &[&str]) -> Option<(usize, usize)> {
    const EXCEPTIONS: &[&[&str]] = &[
        &["other", "than"],
        &["apart", "from"],
        &["aside", "from"],
        &["with", "the", "exception", "of"],
        &["but", "not"],
        &["but"],
        &["except"],
        &["excepting"],
        &["excluding"],
        &["besides"],
        &["barring"],
    ];
    // "Save the file" and "open the bar" except nothing.
    let is_followed = |at: usize| {
        at > 0
            && matches!(
                words.get(at + 1),
                Some(&("the" | "my" | "for" | "in" | "those" | "that"))
            )
    };
    (0..words.len()).find_map(|at| {
        let phrase = EXCEPTIONS.iter().find(|phrase| words[at..].starts_with(phrase));
        let length = match phrase {
            Some(phrase) => phrase.len(),
            None if matches!(words[at], "save" | "bar") && is_followed(at) => 1,
            None => return None,
        };
        Some((at, length))
    })
}

/// Whether an order that leaves `word` unexplained may mean its opposite: "forget the timer for ten minutes".
pub(crate) fn reverses(word: &str) -> bool {
    const REVERSING: &[&str] = &[
        "on", "off", "forget", "ignore", "pause", "abort", "dismiss", "skip", "hide", "drop", "scrap", "bin", "kill",
        "undo", "disable", "silence", "mute", "postpone", "delay", "cancel", "stop", "delete", "remove", "clear",
        "end", "finish", "quit", "leave", "keep",
    ];
    REVERSING.contains(&word)
}

/// Whether a sentence that begins with `word` gives no order.
pub(crate) fn begins_a_question(word: &str) -> bool {
    QUESTIONS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_heard_in_one_form() {
        let lists = [NEGATIONS, QUESTIONS, NUMERIC];
        for word in lists
            .into_iter()
            .flatten()
            .copied()
            .chain(COMMON.split_whitespace())
            .chain(LIKE_COMMANDS.split_whitespace())
        {
            let spoken = |letter: char| letter.is_ascii_lowercase() || letter == '\'';
            assert!(word == "#" || word.chars().all(spoken), "{word}");
        }
        assert!(is_common("all") && !is_common("of") && !is_common("time") && is_negation("mightn't"));
    }
}
