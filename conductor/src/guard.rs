//! The safety guards by name, so that a test can take one away and see that it is missed.
//!
//! A guard is a condition in the real code. In production [`holds`] is that condition and nothing
//! else; in the simulation one guard at a time always holds, and the simulation must notice.

macro_rules! guards {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a guard keeps from happening.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Guard {
            $($(#[$doc])* $name,)*
        }

        #[cfg(test)]
        impl Guard {
            /// Every guard.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

guards! {
    /// A report counts only for the order that is out.
    ReportOfTheOrderThatIsOut,
    /// Each order has a number that never was.
    OrderNumberIsNew,
    /// An order that was accepted is not handed out again.
    AcceptedIsNotHandedOut,
    /// An order whose wish was withdrawn is not handed out.
    WishStillCurrent,
    /// An order that was called off before the agent took it does not begin.
    CalledOffIsNotBegun,
    /// A host that is paused, or detached, is left alone.
    HeldIsLeftAlone,
    /// Where people are to approve, nothing is destroyed before they have.
    ApprovedBeforeDestroyed,
    /// A protected host is not erased.
    ProtectedIsNotErased,
    /// The password of a rescue goes with it.
    PasswordGoesWithTheRescue,
    /// No order goes to a host that is being deleted.
    NoOrderWhileDeleting,
    /// A boot ticket opens one session.
    TicketOpensOnce,
    /// A boot ticket ends.
    TicketNotExpired,
    /// A token is told again only to the boot that it was made for.
    TokenToldToItsBoot,
    /// A ticket that was used is not served to firmware again.
    UsedTicketIsNotServed,
    /// A token that became void on the way changes nothing, and is told nothing.
    VoidOnTheWay,
    /// No ramdisk is let in while its host is being deleted.
    NoHelloWhileDeleting,
    /// The machine that calls is the host.
    MachineFits,
    /// The machine behind the BMC is the one of before.
    BmcOfTheSameMachine,
    /// A daemon's credential makes one key.
    CredentialMakesOneKey,
    /// The daemon of an OS that is taken away has no word any more.
    DaemonOfThePastIsMute,
    /// A deployment answers the present request.
    DeploymentAnswersRequest,
    /// An order that is out is stopped before another wish is begun.
    StoppedBeforeAnotherBegins,
    /// An agent in touch is not given up.
    AgentInTouchIsKept,
    /// A config drive that was cut off has the image written again.
    ImageRedoneAfterCut,
    /// What was cut off when an agent was lost is repeated by a new order.
    CutOffIsOrderedAnew,
    /// A disk that was written to is not clean.
    WrittenIsNotClean,
    /// A disk that is being written is not said to hold an image.
    HalfWrittenIsNotShown,
    /// The power is read anew before the machine is switched.
    PowerReadFresh,
    /// A request for power whose answer was lost is not followed by a reset.
    LostAnswerIsNoSecondBoot,
    /// A BMC says which machine it is before that is switched.
    IdentifiedBeforeSwitched,
    /// A host is off before it is forgotten.
    OffBeforeForgotten,
    /// The virtual drive is empty before its host is forgotten.
    ReleasedBeforeForgotten,
    /// What it takes to join is made for the attempt that is out, and for no other.
    MaterialForTheAttempt,
    /// A bootstrap token goes when its join is over.
    TokenGoesWithTheJoin,
    /// The disk of a worker is wiped before its Node goes: it would come back.
    WipedBeforeItsNodeGoes,
    /// The Node of another machine stays.
    NodeOfAnotherStays,
    /// The secrets of a deployment go with it.
    SecretsGoWithTheImage,
}

/// Whether the condition holds.
#[cfg(not(test))]
#[inline]
pub(crate) const fn holds(_: Guard, condition: bool) -> bool {
    condition
}

/// Whether a guard that is no condition stands: it does.
#[cfg(not(test))]
#[inline]
pub(crate) const fn stands(_: Guard) -> bool {
    true
}

#[cfg(test)]
pub(crate) use taken_away::{holds, stands};

/// Guards that this thread's test has taken away.
#[cfg(test)]
pub(crate) mod taken_away {
    use std::cell::Cell;

    use super::Guard;

    thread_local! {
        static AWAY: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    /// Whether the condition holds, or its guard was taken away.
    pub(crate) fn holds(guard: Guard, condition: bool) -> bool {
        condition || !stands(guard)
    }

    /// Whether the guard was not taken away.
    pub(crate) fn stands(guard: Guard) -> bool {
        AWAY.get() != Some(guard)
    }

    /// Takes a guard away, or puts all back.
    pub(crate) fn set(guard: Option<Guard>) {
        AWAY.set(guard);
    }
}
