export default function qrcode(version: number, level: string): any;
