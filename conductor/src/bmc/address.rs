//! BMC addresses as Metal3 writes them, taken apart.
//!
//! Only Redfish so far; another kind of BMC adds its schemes to the table here.

use super::BmcError;

/// Schemes and what they mean on the wire. Virtual media or not is said elsewhere in the spec, so
/// both of Metal3's forms are read alike.
const SCHEMES: [(&str, &str); 6] = [
    ("redfish://", "https"),
    ("redfish+https://", "https"),
    ("redfish+http://", "http"),
    ("redfish-virtualmedia://", "https"),
    ("redfish-virtualmedia+https://", "https"),
    ("redfish-virtualmedia+http://", "http"),
];

/// Where a BMC is, and which of its systems is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `https://10.0.0.5:8443`, no slash at the end.
    pub(super) base: String,
    /// `/redfish/v1/Systems/1`; `None` for the only one.
    pub(super) system: Option<String>,
}

impl Address {
    /// Reads `redfish[-virtualmedia][+http|+https]://HOST[:PORT][/redfish/v1/Systems/ID]`.
    pub(super) fn parse(text: &str) -> Result<Self, BmcError> {
        let invalid = |reason| BmcError::Address {
            address: text.chars().take(200).collect(),
            reason,
        };
        let (rest, transport) = SCHEMES
            .iter()
            .find_map(|(scheme, http)| Some((text.strip_prefix(scheme)?, http)))
            .ok_or_else(|| invalid("it must begin with redfish:// or redfish+http://"))?;
        let url = reqwest::Url::parse(&format!("{transport}://{rest}"))
            .map_err(|_| invalid("what follows the scheme is not HOST[:PORT][/PATH]"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("credentials do not belong into an address"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it must end with the path of the system"));
        }
        let path = url.path().trim_end_matches('/');
        let system = match path {
            "" | "/redfish" | "/redfish/v1" => None,
            path if path.starts_with("/redfish/") => Some(path.to_owned()),
            _ => return Err(invalid("the path of a system begins with /redfish/v1/")),
        };
        Ok(Self {
            base: url.origin().ascii_serialization(),
            system,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metal3s_forms_are_read() {
        for (text, base, system) in [
            ("redfish://10.0.0.5", "https://10.0.0.5", None),
            (
                "redfish+http://10.77.0.1:8001/redfish/v1/Systems/1",
                "http://10.77.0.1:8001",
                Some("/redfish/v1/Systems/1"),
            ),
            (
                "redfish-virtualmedia+https://[fd00::5]:8443/redfish/v1/Systems/a/",
                "https://[fd00::5]:8443",
                Some("/redfish/v1/Systems/a"),
            ),
            ("redfish://bmc.lab/redfish/v1", "https://bmc.lab", None),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (address.base.as_str(), address.system.as_deref()),
                (base, system)
            );
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "10.0.0.5",
            "ipmi://10.0.0.5",
            "redfish://",
            "redfish://root:calvin@10.0.0.5",
            "redfish://10.0.0.5/Systems/1",
            "redfish://10.0.0.5/redfish/v1/Systems/1?x=y",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
