//! SendTargets: which targets an initiator may see, and where (RFC 7143 appendix C, spec B.6).

use crate::login::Purpose;
use crate::target::Targets;
use crate::text::{MalformedText, Text, pairs};
use crate::wire::PORTAL_GROUP;

/// Answers the text of a text request. `portal` is our address as this connection sees it.
pub(crate) fn answer(
    request: &[u8],
    targets: &Targets,
    initiator: &str,
    purpose: &Purpose,
    portal: &str,
) -> Result<Vec<u8>, MalformedText> {
    let mut answer = Text::default();
    for (key, value) in pairs(request)? {
        match (key, purpose) {
            ("SendTargets", Purpose::Discovery) if value == "All" => {
                let visible = targets.targets.iter().filter(|target| target.allows(initiator));
                visible.for_each(|target| describe(&target.name, portal, &mut answer));
            }
            ("SendTargets", Purpose::Discovery) => {
                if let Some(target) = targets.find(value).filter(|target| target.allows(initiator)) {
                    describe(&target.name, portal, &mut answer);
                }
            }
            ("SendTargets", Purpose::Normal(target)) if value.is_empty() || value == target.name => {
                describe(&target.name, portal, &mut answer);
            }
            ("SendTargets", Purpose::Normal(_)) => answer.push(key, "Reject"),
            _ => answer.push(key, "NotUnderstood"),
        }
    }
    Ok(answer.into_bytes())
}

fn describe(name: &str, portal: &str, answer: &mut Text) {
    answer.push("TargetName", name);
    answer.push("TargetAddress", &format!("{portal},{PORTAL_GROUP}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::TargetOptions;

    #[test]
    fn who_sees_what() {
        let open = TargetOptions { name: "iqn.2026-01.test:open".into(), ..TargetOptions::default() };
        let closed = TargetOptions {
            name: "iqn.2026-01.test:closed".into(),
            initiators: vec!["iqn.2026-01.test:friend".into()],
            ..TargetOptions::default()
        };
        let targets = Targets::new([open, closed], None).unwrap();
        let address = "TargetAddress=[::1]:3260,1";
        let both = format!("TargetName=iqn.2026-01.test:open {address} TargetName=iqn.2026-01.test:closed {address} ");
        let one = format!("TargetName=iqn.2026-01.test:open {address} ");
        let normal = Purpose::Normal(targets.targets[0].clone());
        for (who, purpose, request, expected) in [
            ("friend", &Purpose::Discovery, "SendTargets=All\0", both.as_str()),
            ("stranger", &Purpose::Discovery, "SendTargets=All\0", &one),
            ("stranger", &Purpose::Discovery, "SendTargets=iqn.2026-01.test:open", &one),
            ("stranger", &Purpose::Discovery, "SendTargets=iqn.2026-01.test:closed", ""),
            ("stranger", &Purpose::Discovery, "SendTargets=", ""),
            ("stranger", &normal, "SendTargets=\0", &one),
            ("stranger", &normal, "SendTargets=All\0", "SendTargets=Reject "),
            ("stranger", &normal, "X-y=1\0", "X-y=NotUnderstood "),
            ("stranger", &normal, "", ""),
        ] {
            let name = format!("iqn.2026-01.test:{who}");
            let said = answer(request.as_bytes(), &targets, &name, purpose, "[::1]:3260").unwrap();
            assert_eq!(String::from_utf8(said).unwrap().replace('\0', " "), expected, "{who}: {request:?}");
        }
    }
}
