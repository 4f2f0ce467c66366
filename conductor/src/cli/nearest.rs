//! The known word that a person probably meant.

/// Words that are further away are no help.
const FURTHEST: usize = 3;

/// `, did you mean …?`, or nothing.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(word, known) {
        Some(near) => format!(", did you mean `{near}`?"),
        None => String::new(),
    }
}

fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = FURTHEST.min(word.chars().count() / 2);
    let far = known
        .into_iter()
        .map(|known| (distance(word, known), known));
    far.filter(|(far, _)| *far <= limit)
        .min()
        .map(|(_, known)| known)
}

/// Letters to add, take away or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        let known = ["boot_mac", "boot_via", "image"];
        assert_eq!(nearest("bot_mac", known), Some("boot_mac"));
        assert_eq!(nearest("bootMac", known), Some("boot_mac"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(hint("imgae", known), ", did you mean `image`?");
    }
}
