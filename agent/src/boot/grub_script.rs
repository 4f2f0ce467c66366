//! Reads GRUB's script language into a tree: words, quotes, variables, `if`, functions and blocks,
//! as `grub-mkconfig` writes them. It runs nothing (`grub_cfg.rs` does), and a construct that it
//! does not know (pipes, loops) is an error.

/// Deepest nesting of blocks.
const DEPTH_LIMIT: u32 = 32;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// As it stands.
    Text(String),
    /// A variable; outside quotes its value is split at white space.
    Variable {
        /// Its name.
        name: String,
        /// Whether it stands in double quotes.
        quoted: bool,
    },
}

/// A word before its variables have values.
pub(crate) type Word = Vec<Part>;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Words, and the block of a `menuentry` or `submenu`.
    Simple(Vec<Word>, Option<Vec<Command>>),
    /// Conditions with what follows from them, and the rest.
    If(Vec<(Vec<Command>, Vec<Command>)>, Vec<Command>),
    /// A function's name and body.
    Function(String, Vec<Command>),
}

/// A script that is not understood, with the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(crate) struct NotUnderstood {
    pub(crate) line: usize,
    pub(crate) what: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A newline or `;`.
    End,
    Open,
    Close,
}

/// Reads a whole script.
pub(crate) fn parse(text: &str) -> Result<Vec<Command>, NotUnderstood> {
    let tokens = Lexer {
        rest: text.chars().peekable(),
        line: 1,
    }
    .tokens()?;
    let mut parser = Parser {
        tokens: tokens.into_iter().peekable(),
        line: 1,
        depth: 0,
    };
    let commands = parser.list(&[])?;
    match parser.tokens.next() {
        None => Ok(commands),
        Some((line, token)) => Err(unexpected(line, &token)),
    }
}

fn unexpected(line: usize, token: &Token) -> NotUnderstood {
    let what = match token {
        Token::Word(word) => format!("unexpected {:?}", plain(word).unwrap_or("word")),
        Token::End => "unexpected end of a command".to_owned(),
        Token::Open => "unexpected {".to_owned(),
        Token::Close => "unexpected }".to_owned(),
    };
    NotUnderstood { line, what }
}

/// The text of a word that has nothing but text.
pub(crate) fn plain(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Part::Text(text)] => Some(text),
        _ => None,
    }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn tokens(mut self) -> Result<Vec<(usize, Token)>, NotUnderstood> {
        let mut tokens = Vec::new();
        while let Some(&next) = self.rest.peek() {
            let line = self.line;
            match next {
                ' ' | '\t' | '\r' => drop(self.rest.next()),
                '#' => while self.rest.next_if(|&c| c != '\n').is_some() {},
                '\n' | ';' => {
                    self.line += usize::from(next == '\n');
                    self.rest.next();
                    tokens.push((line, Token::End));
                }
                '|' | '&' | '<' | '>' => return Err(self.error(&format!("{next:?} is not known"))),
                _ => {
                    let word = self.word()?;
                    tokens.push((line, token(word)));
                }
            }
        }
        tokens.push((self.line, Token::End));
        Ok(tokens)
    }

    fn word(&mut self) -> Result<Word, NotUnderstood> {
        let mut word = Vec::new();
        while let Some(&next) = self.rest.peek() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '|' | '&' | '<' | '>' => break,
                '\'' => {
                    self.rest.next();
                    let text = self.until('\'')?;
                    push_text(&mut word, &text);
                }
                '"' => {
                    self.rest.next();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.rest.next();
                    match self.rest.next() {
                        Some('\n') => self.line += 1,
                        Some(escaped) => push_text(&mut word, escaped.encode_utf8(&mut [0; 4])),
                        None => return Err(self.error("a \\ at the end")),
                    }
                }
                '$' => {
                    self.rest.next();
                    let part = self.variable(false)?;
                    word.push(part);
                }
                _ => {
                    self.rest.next();
                    push_text(&mut word, next.encode_utf8(&mut [0; 4]));
                }
            }
        }
        Ok(word)
    }

    fn until(&mut self, end: char) -> Result<String, NotUnderstood> {
        let mut text = String::new();
        for next in self.rest.by_ref() {
            if next == end {
                return Ok(text);
            }
            self.line += usize::from(next == '\n');
            text.push(next);
        }
        Err(self.error("a quote that does not end"))
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), NotUnderstood> {
        // An empty string in quotes is a word all the same.
        push_text(word, "");
        while let Some(next) = self.rest.next() {
            match next {
                '"' => return Ok(()),
                '$' => {
                    let part = self.variable(true)?;
                    word.push(part);
                }
                '\\' => match self.rest.next() {
                    Some(escaped @ ('"' | '$' | '\\')) => {
                        push_text(word, escaped.encode_utf8(&mut [0; 4]));
                    }
                    Some(other) => push_text(word, &format!("\\{other}")),
                    None => break,
                },
                _ => {
                    self.line += usize::from(next == '\n');
                    push_text(word, next.encode_utf8(&mut [0; 4]));
                }
            }
        }
        Err(self.error("a quote that does not end"))
    }

    fn variable(&mut self, quoted: bool) -> Result<Part, NotUnderstood> {
        let name = if self.rest.next_if_eq(&'{').is_some() {
            self.until('}')?
        } else {
            let mut name = String::new();
            while let Some(c) = self
                .rest
                .next_if(|c| c.is_ascii_alphanumeric() || *c == '_')
            {
                name.push(c);
            }
            name
        };
        let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(known) {
            return Err(self.error("a $ that no variable's name follows"));
        }
        Ok(Part::Variable { name, quoted })
    }

    fn error(&self, what: &str) -> NotUnderstood {
        NotUnderstood {
            line: self.line,
            what: what.to_owned(),
        }
    }
}

fn token(word: Word) -> Token {
    match plain(&word) {
        Some("{") => Token::Open,
        Some("}") => Token::Close,
        _ => Token::Word(word),
    }
}

fn push_text(word: &mut Word, text: &str) {
    if let Some(Part::Text(last)) = word.last_mut() {
        last.push_str(text);
    } else {
        word.push(Part::Text(text.to_owned()));
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<(usize, Token)>>,
    line: usize,
    depth: u32,
}

impl Parser {
    /// Commands up to one of the closing words, a `}`, or the end; what closes is left there.
    fn list(&mut self, closing: &[&str]) -> Result<Vec<Command>, NotUnderstood> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            return Err(self.error("too deeply nested"));
        }
        let mut commands = Vec::new();
        while let Some((line, token)) = self.tokens.peek() {
            self.line = *line;
            match token {
                Token::End => drop(self.tokens.next()),
                Token::Word(word) if plain(word).is_some_and(|w| closing.contains(&w)) => break,
                Token::Word(_) => commands.push(self.command()?),
                Token::Open | Token::Close => break,
            }
        }
        self.depth -= 1;
        Ok(commands)
    }

    fn command(&mut self) -> Result<Command, NotUnderstood> {
        if self.take_keyword("if") {
            return self.condition();
        }
        let mut words = Vec::new();
        let is_word = |(_, token): &(usize, Token)| matches!(token, Token::Word(_));
        while let Some((line, Token::Word(word))) = self.tokens.next_if(is_word) {
            self.line = line;
            words.push(word);
        }
        match words.first().and_then(plain).unwrap_or_default() {
            "function" => {
                let name = words.get(1).and_then(plain).unwrap_or_default().to_owned();
                Ok(Command::Function(name, self.block()?))
            }
            "menuentry" | "submenu" => {
                let block = self.block()?;
                Ok(Command::Simple(words, Some(block)))
            }
            keyword @ ("for" | "while" | "until") => {
                Err(self.error(&format!("{keyword} is not known")))
            }
            _ => Ok(Command::Simple(words, None)),
        }
    }

    /// What follows `if`, up to its `fi`.
    fn condition(&mut self) -> Result<Command, NotUnderstood> {
        let mut branches = Vec::new();
        loop {
            let condition = self.list(&["then"])?;
            if !self.take_keyword("then") {
                return Err(self.error("an if without its then"));
            }
            branches.push((condition, self.list(&["elif", "else", "fi"])?));
            if !self.take_keyword("elif") {
                break;
            }
        }
        let rest = if self.take_keyword("else") {
            self.list(&["fi"])?
        } else {
            Vec::new()
        };
        if self.take_keyword("fi") {
            Ok(Command::If(branches, rest))
        } else {
            Err(self.error("an if without its fi"))
        }
    }

    fn take_keyword(&mut self, keyword: &str) -> bool {
        let is = |(_, token): &(usize, Token)| match token {
            Token::Word(word) => plain(word) == Some(keyword),
            _ => false,
        };
        self.tokens.next_if(is).is_some()
    }

    fn block(&mut self) -> Result<Vec<Command>, NotUnderstood> {
        self.expect(&Token::Open)?;
        let commands = self.list(&[])?;
        self.expect(&Token::Close)?;
        Ok(commands)
    }

    fn expect(&mut self, wanted: &Token) -> Result<(), NotUnderstood> {
        while *wanted == Token::Open && self.tokens.next_if(|(_, t)| *t == Token::End).is_some() {}
        match self.tokens.next() {
            Some((_, token)) if token == *wanted => Ok(()),
            Some((line, token)) => Err(unexpected(line, &token)),
            None => Err(self.error("the script ends inside a block")),
        }
    }

    fn error(&self, what: &str) -> NotUnderstood {
        NotUnderstood {
            line: self.line,
            what: what.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Word {
        vec![Part::Text(text.to_owned())]
    }

    #[test]
    fn words_and_quotes() {
        let commands = parse("linux /vmlinuz a='b c' \"d $e\" ${f}g # not this\n").unwrap();
        let Command::Simple(words, None) = &commands[0] else {
            panic!("{commands:?}")
        };
        let variable = |name: &str, quoted| Part::Variable {
            name: name.to_owned(),
            quoted,
        };
        assert_eq!(words[..3], [text("linux"), text("/vmlinuz"), text("a=b c")]);
        assert_eq!(words[3], [Part::Text("d ".into()), variable("e", true)]);
        assert_eq!(words[4], [variable("f", false), Part::Text("g".into())]);
        assert_eq!(words.len(), 5);
    }

    #[test]
    fn blocks_and_conditions_nest() {
        let script = "function f {\n a\n}\nif [ x = y ] ; then\n b; c\nelif d; then e\n\
                      else\n if g; then h; fi\nfi\nmenuentry 'T' --id i {\n\tlinux /k\n}\n";
        let commands = parse(script).unwrap();
        assert!(
            matches!(&commands[0], Command::Function(name, body) if name == "f" && body.len() == 1)
        );
        let Command::If(branches, rest) = &commands[1] else {
            panic!("{commands:?}")
        };
        assert_eq!((branches.len(), branches[0].1.len(), rest.len()), (2, 2, 1));
        assert!(matches!(&commands[2], Command::Simple(words, Some(block))
            if words.len() == 4 && block.len() == 1));
    }

    #[test]
    fn what_is_not_understood_names_its_line() {
        for (script, line) in [
            ("a\nb | c\n", 2),
            ("a\nb 'c\n", 3),
            ("for i in a; do b; done", 1),
            ("if a\nfi\n", 3),
            ("menuentry x {\n", 2),
            ("}\n", 1),
            ("echo $\n", 1),
        ] {
            assert_eq!(parse(script).unwrap_err().line, line, "{script}");
        }
        let deep = "if a; then ".repeat(1000);
        assert!(parse(&deep).unwrap_err().what.contains("nested"));
    }
}
