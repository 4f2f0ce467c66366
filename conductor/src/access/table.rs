//! The calls, and who may make each. A call without a line here is refused: whoever adds a route
//! adds its line.

use super::caller::Role;

/// Whom a call is open to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Everybody, before anything is known of them: what they send proves itself, or is public.
    Anyone,
    /// The agent of a host, for that host.
    Agent,
    /// The daemon of a host, for that host.
    Daemon,
    /// People with this role, there.
    Person(Role, Scope),
}

/// Where the role is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In the project of the host that the path names. A host that may not even be read is not
    /// there: 404.
    Host,
    /// In the project that the body names.
    Body,
    /// In the project of the host that the path names, if it exists, and in the body's.
    HostAndBody,
    /// In any project: the answer shows what [`super::caller::Visible`] says, or nothing of one.
    Any,
    /// Everywhere.
    Global,
}

/// A call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// Its method.
    pub(crate) method: &'static str,
    /// Its path, with the parameters' names.
    pub(crate) path: &'static str,
    /// Who may make it.
    pub(crate) who: Who,
}

const fn line(method: &'static str, path: &'static str, who: Who) -> Line {
    Line { method, path, who }
}

const fn view(method: &'static str, path: &'static str, scope: Scope) -> Line {
    line(method, path, Who::Person(Role::Viewer, scope))
}

const fn operate(method: &'static str, path: &'static str, scope: Scope) -> Line {
    line(method, path, Who::Person(Role::Operator, scope))
}

const fn administer(method: &'static str, path: &'static str) -> Line {
    line(method, path, Who::Person(Role::Admin, Scope::Global))
}

/// Every call.
#[rustfmt::skip]
pub(crate) const TABLE: &[Line] = &[
    line("POST", "/v1/agent/hello", Who::Anyone),
    line("POST", "/v1/agent/poll", Who::Agent),
    line("POST", "/v1/daemon/enroll", Who::Anyone),
    line("POST", "/v1/daemon/check-in", Who::Daemon),
    line("POST", "/v1/daemon/join", Who::Daemon),
    line("POST", "/v1/daemon/join-report", Who::Daemon),

    view("GET", "/v1/hosts", Scope::Any),
    operate("POST", "/v1/hosts", Scope::Body),
    view("GET", "/v1/hosts/{name}", Scope::Host),
    operate("PUT", "/v1/hosts/{name}", Scope::HostAndBody),
    operate("PATCH", "/v1/hosts/{name}", Scope::HostAndBody),
    operate("DELETE", "/v1/hosts/{name}", Scope::Host),
    operate("POST", "/v1/hosts/{name}/provision", Scope::Host),
    operate("POST", "/v1/hosts/{name}/deprovision", Scope::Host),
    operate("POST", "/v1/hosts/{name}/retry", Scope::Host),
    operate("POST", "/v1/hosts/{name}/clean", Scope::Host),
    operate("POST", "/v1/hosts/{name}/service", Scope::Host),
    operate("POST", "/v1/hosts/{name}/rescue", Scope::Host),
    operate("POST", "/v1/hosts/{name}/unrescue", Scope::Host),
    operate("POST", "/v1/hosts/{name}/abort", Scope::Host),
    operate("POST", "/v1/hosts/{name}/approve", Scope::Host),
    view("GET", "/v1/hosts/{name}/explain", Scope::Host),
    view("GET", "/v1/hosts/{name}/events", Scope::Host),
    view("GET", "/v1/hosts/{name}/inventory", Scope::Host),
    view("GET", "/v1/hosts/{name}/timeline", Scope::Host),
    view("GET", "/v1/timeline", Scope::Any),
    view("GET", "/v1/images", Scope::Any),
    operate("POST", "/v1/images", Scope::Global),
    view("GET", "/v1/images/{name}", Scope::Any),
    operate("PUT", "/v1/images/{name}", Scope::Global),
    operate("PATCH", "/v1/images/{name}", Scope::Global),
    operate("DELETE", "/v1/images/{name}", Scope::Global),
    operate("PUT", "/v1/images/{name}/content", Scope::Global),
    // Who knows the digest may have the file, as its bytes prove themselves.
    line("GET", "/images/{file}", Who::Anyone),

    view("GET", "/v1/profiles", Scope::Any),
    operate("POST", "/v1/profiles", Scope::Global),
    view("GET", "/v1/profiles/{name}", Scope::Any),
    operate("PUT", "/v1/profiles/{name}", Scope::Global),
    operate("PATCH", "/v1/profiles/{name}", Scope::Global),
    operate("DELETE", "/v1/profiles/{name}", Scope::Global),

    view("GET", "/v1/clusters", Scope::Any),
    administer("POST", "/v1/clusters"),
    view("GET", "/v1/clusters/{name}", Scope::Any),
    administer("PUT", "/v1/clusters/{name}"),
    administer("PATCH", "/v1/clusters/{name}"),
    administer("DELETE", "/v1/clusters/{name}"),
    view("GET", "/v1/clusters/{name}/check", Scope::Any),
    operate("POST", "/v1/clusters/{name}/check", Scope::Global),
    // A roll names hosts of all projects.
    view("GET", "/v1/clusters/{name}/roll", Scope::Global),
    operate("POST", "/v1/clusters/{name}/roll", Scope::Global),
    operate("POST", "/v1/clusters/{name}/roll/pause", Scope::Global),
    operate("POST", "/v1/clusters/{name}/roll/resume", Scope::Global),
    operate("POST", "/v1/clusters/{name}/roll/abort", Scope::Global),
    view("GET", "/v1/events", Scope::Any),
    view("GET", "/v1/tasks", Scope::Any),
    operate("DELETE", "/v1/tasks/{name}", Scope::Host),
    view("GET", "/v1/version", Scope::Any),
    view("GET", "/v1/whoami", Scope::Any),
    view("GET", "/v1/hosts/{name}/logs", Scope::Host),
    line("GET", "/v1/support-bundle", Who::Person(Role::Admin, Scope::Global)),
    view("GET", "/metrics", Scope::Global),
    line("GET", "/openapi.json", Who::Anyone),

    administer("GET", "/v1/tokens"),
    administer("POST", "/v1/tokens"),
    administer("DELETE", "/v1/tokens/{token}"),
    administer("GET", "/v1/certificates"),
    administer("POST", "/v1/certificates"),
    administer("DELETE", "/v1/certificates/{certificate}"),
    administer("GET", "/v1/roles"),
    administer("PUT", "/v1/roles/{subject}"),
    administer("DELETE", "/v1/roles/{subject}"),
    administer("GET", "/v1/audit"),

    line("GET", "/healthz", Who::Anyone),
    line("GET", "/readyz", Who::Anyone),
];

/// Calls whose bodies nobody reads whole: their handlers bound them.
pub(crate) const STREAMED: &[&str] = &["/v1/images/{name}/content"];

/// What the table says of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The one line that speaks of it.
    Open(Who),
    /// The path has other methods.
    OtherMethods,
    /// Nothing.
    Nothing,
}

/// Looks up a call. HEAD is asked for as GET.
pub(crate) fn look_up(table: &[Line], method: &str, path: &str) -> Verdict {
    let method = if method == "HEAD" { "GET" } else { method };
    let mut of_path = table.iter().filter(|line| line.path == path).peekable();
    if of_path.peek().is_none() {
        return Verdict::Nothing;
    }
    of_path
        .find(|line| line.method == method)
        .map_or(Verdict::OtherMethods, |line| Verdict::Open(line.who))
}

/// The methods of a path, as the header `Allow` has them.
pub(crate) fn methods(table: &[Line], path: &str) -> String {
    let of_path = table.iter().filter(|line| line.path == path);
    of_path
        .map(|line| line.method)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_has_two_lines_and_what_has_none_is_closed() {
        for (at, one) in TABLE.iter().enumerate() {
            let twin = TABLE[..at]
                .iter()
                .any(|other| (other.method, other.path) == (one.method, one.path));
            assert!(!twin, "{} {} is there twice", one.method, one.path);
        }
        assert_eq!(look_up(TABLE, "GET", "/v1/nothing"), Verdict::Nothing);
        assert_eq!(look_up(TABLE, "PUT", "/v1/version"), Verdict::OtherMethods);
        let read = Verdict::Open(Who::Person(Role::Viewer, Scope::Any));
        assert_eq!(look_up(TABLE, "HEAD", "/v1/version"), read);
        assert_eq!(methods(TABLE, "/v1/hosts"), "GET, POST");
    }
}
